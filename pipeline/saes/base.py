"""What every SAE is: an encoder, a decoder, and the few methods that training, evaluation and export ask for.

Letters: B rows, D width of the hook that is read, E that of the hook that is predicted (D, the same hook, unless it is a transcoder), M
latents, K active ones. W_enc (D, M), b_enc (M), W_dec (M, E), b_dec (E), as in SAELens; a skip-transcoder has W_skip (E, D) as well.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.artifacts.seeds import derive
from pipeline.saes.decoder import renormalise
from pipeline.saes.latents import Latents
from pipeline.saes.product import product
from pipeline.saes.units import Units
from pipeline.study.sae import SAE as Spec

TRANSCODER_NORM = 0.1
"""Of a transcoder's encoder at the beginning: its directions have nothing to do with the decoder's yet, and latents are small until they
predict something (docs/sae-training.md)."""


@dataclass
class Losses:
    """What one batch gives: the loss to minimise, its parts by name, in how many rows each latent fired, the squared error
    summed over the batch."""

    total: Tensor
    parts: dict[str, Tensor]
    fired_M: Tensor
    squared_error: Tensor


@dataclass(frozen=True)
class Step:
    """What a step of training tells the SAE."""

    variance: float
    """Of what is predicted, over the whole store, summed over dimensions."""
    sparsity: float = 1.0
    """Share of the sparsity penalty that counts (warm-up)."""
    k: int | None = None
    """Active latents of a row, where that is annealed; the setting's own when None."""
    dead_M: Tensor | None = None
    """Latents that have not fired within the window; None: nobody counts."""
    summed: Callable[[Tensor], Tensor] = lambda value: value
    """Sum over the processes that share a batch."""
    gathered: Callable[[Tensor], Tensor] = lambda value: value
    """Values of all processes that share a batch, joined along the first dimension."""
    rank: int = 0
    """Number of this process among them; they hold the rows of the batch in their order."""


class SAE(nn.Module):
    """Encoder, decoder, and how they are trained. An architecture says the rest."""

    architecture: str
    """What SAELens calls its activation function, once it is trained."""
    _BIASES: tuple[str, ...] = ("b_enc",)
    """Biases of the encoder (M,)."""
    _THRESHOLDS: tuple[str, ...] = ()
    """What pre-activations are compared with (M,)."""
    _FIRST = 1.0
    """How large latents begin, of a tied encoder: a share of the size that reconstructs best (`scale`)."""

    def __init__(self, spec: Spec, width: int, latents: int, out: int) -> None:
        super().__init__()
        self.spec: Any = spec
        self.W_enc = nn.Parameter(torch.zeros(latents, width).T)  # laid out by latent, as the sparse gradient comes
        self.b_enc = nn.Parameter(torch.zeros(latents))
        self.W_dec = nn.Parameter(torch.zeros(latents, out))
        self.b_dec = nn.Parameter(torch.zeros(out))
        self.W_skip = nn.Parameter(torch.zeros(out, width)) if spec.skip else None

    def encode(self, x_BD: Tensor) -> Tensor:
        """Latents (B, M), as they are after training."""
        raise NotImplementedError

    def losses(self, x_BD: Tensor, y_BE: Tensor, at: Step) -> Losses:
        """Loss of a batch: latents of x, which are to give y (x itself unless it is a transcoder)."""
        raise NotImplementedError

    def saelens(self) -> dict[str, Any]:
        """What SAELens' cfg.json says beyond the sizes. Where SAELens has no such architecture, the name is one that it refuses."""
        if self.spec.outputs is None:
            return {"architecture": self.architecture, "apply_b_dec_to_input": self.spec.subtract_b_dec}
        kind = "transcoder" if self.W_skip is None else "skip_transcoder"
        name = kind if self.architecture == "standard" else f"{self.architecture}_{kind}"
        return {"architecture": name, "apply_b_dec_to_input": False, "d_out": self.W_dec.shape[1]}

    def decode(self, f_BM: Tensor) -> Tensor:
        """What the latents stand for (B, E); without what a skip-transcoder adds."""
        return f_BM @ self.W_dec + self.b_dec

    def forward(self, x_BD: Tensor) -> Tensor:
        """Reconstruction of x, or what a transcoder predicts from it (B, E)."""
        return self.predict(self.encode(x_BD), x_BD)

    def predict(self, f_BM: Tensor, x_BD: Tensor) -> Tensor:
        """The same, of latents that are known already."""
        found = self.decode(f_BM)
        return found if self.W_skip is None else found + x_BD @ self.W_skip.T

    def centred(self, x_BD: Tensor) -> Tensor:
        """The encoder's input. What b_dec does in it reaches b_dec by `bias`."""
        return x_BD - self.b_dec.detach() if self.spec.subtract_b_dec else x_BD

    def bias(self, name: str = "b_enc") -> Tensor:
        """A bias of the encoder (M,); its gradient reaches b_dec too, as that is subtracted from the input: `(x - b_dec) @ W_enc + bias`
        depends on b_dec as on `-b_dec @ W_enc` in the bias. Taken through the input it would cost a product of its own."""
        bias_M = self.get_parameter(name)
        return _Bias.apply(bias_M, self.b_dec, self.W_enc) if self.spec.subtract_b_dec else bias_M

    def pre(self, centred_BD: Tensor) -> Tensor:
        """Pre-activations (B, M): the dense product, in the precision of the weights whatever it was computed in."""
        return product(centred_BD, self.W_enc, self.bias())

    def error(self, f: Latents, x_BD: Tensor, y_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of what `f` stands for, summed over the batch (), and the error (B, E), which has no gradient."""
        (squared,), error_BE = f.errors(self.W_dec, self.b_dec, self.wanted(x_BD, y_BE))
        return squared, error_BE

    def wanted(self, x_BD: Tensor, y_BE: Tensor) -> Tensor:
        """What latents and b_dec are to give (B, E)."""
        return y_BE if self.W_skip is None else y_BE - x_BD @ self.W_skip.T

    @torch.no_grad()
    def initialise(self, centre_E: Tensor, x_BD: Tensor | None = None) -> None:
        """Weights before the first step; `centre_E` is where b_dec begins. A tied encoder is scaled by some rows `x_BD`
        (`scale`); it has norm 1 without them."""
        spec, generator = self.spec, torch.Generator().manual_seed(derive(self.spec.seed, "sae", "weights"))
        if spec.init == "linear":
            bounds = dict.fromkeys(("W_enc", *self._BIASES), self.W_enc.shape[0]) | dict.fromkeys(("W_dec", "b_dec"), self.W_dec.shape[0])
            for name, inputs in bounds.items():
                getattr(self, name).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            for name in self._THRESHOLDS:
                getattr(self, name).mul_(self.W_enc.norm(dim=0))  # as many rows reach them as with columns of norm 1
            if self.unit_decoder():
                renormalise(self.W_dec)
        else:
            rows = torch.randn(self.W_dec.shape, generator=generator)
            self.W_dec.copy_(rows / rows.norm(dim=1, keepdim=True))
            if spec.outputs is None:
                self.W_enc.copy_(self.W_dec.T)
            else:
                columns = torch.randn(self.W_enc.T.shape, generator=generator)
                self.W_enc.copy_((columns / columns.norm(dim=1, keepdim=True)).T)
            self.b_dec.copy_(centre_E)
            every, norm = torch.arange(len(self.W_dec)), 1.0
            self.restart(every)
            if spec.outputs is not None:
                norm = TRANSCODER_NORM
            elif x_BD is not None:
                norm = self._FIRST * self.scale(x_BD)
            self.W_enc.mul_(norm)
            self.restart(every, norm)

    @torch.no_grad()
    def scale(self, x_BD: Tensor) -> float:
        """The factor of all latents with which they reconstruct rows with the least squared error: nearly what Gao et al. (2024, A.1) begin
        the encoder with. Where many are active they would begin far too large, and first have to shrink. 1 where it is not positive."""
        found_BE, x_BE = self.decode(self.begin(x_BD)) - self.b_dec, x_BD - self.b_dec
        factor = ((found_BE * x_BE).sum() / found_BE.square().sum()).item()
        return factor if 0 < factor < float("inf") else 1.0

    def begin(self, x_BD: Tensor) -> Tensor:
        """Latents (B, M) of rows in the first step."""
        return self.encode(x_BD)

    @torch.no_grad()
    def restart(self, which_K: Tensor, norm: float = 1.0) -> None:
        """Puts what some latents have beside their directions (biases, thresholds) where it was before the first step. `norm` is that of
        their encoder rows, 1 before the first step: thresholds are that share of what they were, so that as many rows reach them."""
        for name in self._BIASES:
            getattr(self, name)[which_K] = 0.0

    @torch.no_grad()
    def fold(self, inputs: Units, outputs: Units) -> None:
        """Takes the units of training into the weights, so that they fit raw activations.

        With a scale, latents come out in units of what is predicted: biases and thresholds are divided, which leaves what fires as it is,
        since all activation functions here are positively homogeneous, and leaves the decoder as it is. Whitened, latents stay in units of
        the whitened activations, and decoder rows have norm 1 in those alone.
        """
        self.W_enc.copy_(self.W_enc * (inputs.scale / outputs.scale) if inputs.matrix is None else inputs.matrix @ self.W_enc)
        for name in (*self._BIASES, *self._THRESHOLDS):
            getattr(self, name).div_(outputs.scale)
        if not self.spec.subtract_b_dec:
            self.shift_pre(-(inputs.shift @ self.W_enc))
        if outputs.inverse is not None:
            self.W_dec.copy_(self.W_dec @ outputs.inverse)
        self.b_dec.copy_(outputs.back(self.b_dec))
        if self.W_skip is not None:
            self.W_skip.copy_(outputs.directions_back(inputs.directions(self.W_skip.T)).T)
            self.b_dec.sub_(self.W_skip @ inputs.shift)

    def shift_pre(self, by_M: Tensor) -> None:
        """Adds to all pre-activations, by the biases."""
        self.b_enc.add_(by_M)

    def unit_decoder(self) -> bool:
        """Whether rows of the decoder are kept at norm 1."""
        return self.spec.decoder == "unit"


class _Bias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bias_M: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
        ctx.save_for_backward(W_enc)
        return bias_M.view_as(bias_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor | None, ...]:
        (W_enc,) = ctx.saved_tensors
        return grad_M, -(W_enc @ grad_M), None


def error_share(squared_error: Tensor, rows: int, variance: float) -> Tensor:
    """Squared error, summed over a batch, as a share of the variance: what all recipes minimise whose weights do not depend on scale."""
    return squared_error / (rows * variance)


def total(parts: Iterable[Tensor]) -> Tensor:
    """Sum of the parts of a loss."""
    return torch.stack(list(parts)).sum()
