"""A language model in the manner of nanochat (Karpathy 2025, first version).

- rotary positions (base 10000, halves of a head), then queries and keys are normed; groups of query heads share keys and values
- RMS norms have no parameters; one stands right after the embedding, one before the head, which is not the embedding
- squared ReLU; no biases; logits are capped to (-softcap, softcap)
- init: N(0, 1) for the embedding; N(0, 1/fan_in) for linear maps, smaller where they narrow (Yang et al. 2023, arXiv 2310.17813);
  zero for the head and the maps that write to the stream, so that it starts as the identity and the first loss is log(vocabulary)
- where nanochat computes in bfloat16, with angles of rotary positions rounded to it as well, this is float32 throughout
Modules are named as in nanochat's checkpoints. Shapes: B sequences, T tokens, C width, H heads, D width of a head.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.artifacts.errors import UserError
from pipeline.models import foreign
from pipeline.models.hooks import Tap
from pipeline.models.language import LanguageModel
from pipeline.models.nanochat_files import read
from pipeline.study.models.nanochat import Nanochat as Spec


def norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension; eps is the machine epsilon of x's type."""
    return F.rms_norm(x, (x.shape[-1],))


def turns(x_BTC: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """cos and sin (T, head / 2) of each position's angles, `position * 10000^(-2i / head)`, in the type and place of x."""
    powers = torch.arange(0, head, 2, device=x_BTC.device, dtype=x_BTC.dtype) / head
    positions = torch.arange(x_BTC.shape[1], device=x_BTC.device, dtype=x_BTC.dtype)
    angles = positions[:, None] * 10000**-powers
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of numbers, one from each half of a head, by the angle of its position."""
    first, second = x_BHTD.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class Attention(nn.Module):
    """Causal attention with rotary positions; the maps write `heads` queries and `kv_heads` keys and values."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.head = spec.width // spec.heads
        shared = self.head * (spec.kv_heads or spec.heads)
        self.c_q = nn.Linear(spec.width, spec.width, bias=False)
        self.c_k = nn.Linear(spec.width, shared, bias=False)
        self.c_v = nn.Linear(spec.width, shared, bias=False)
        self.c_proj = nn.Linear(spec.width, spec.width, bias=False)

    def forward(self, x_BTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        q, k, v = (part(x_BTC).view(B, T, -1, self.head).transpose(1, 2) for part in (self.c_q, self.c_k, self.c_v))
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """The two linear maps; what is between them is a hook, so the block calls them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(spec), MLP(spec.width)

    def forward(self, x_BTC: Tensor, cos: Tensor, sin: Tensor, tap: Tap, at: str) -> Tensor:
        x = tap(f"{at}.resid_pre", x_BTC)
        x = tap(f"{at}.resid_mid", x + tap(f"{at}.attn_out", self.attn(norm(x), cos, sin)))
        hidden = tap(f"{at}.mlp_hidden", self.mlp.c_fc(norm(x)).relu().square())
        return tap(f"{at}.resid_post", x + tap(f"{at}.mlp_out", self.mlp.c_proj(hidden)))


class Model(LanguageModel):
    """token ids (B, T) -> logits (B, T, vocabulary). A checkpoint's vocabulary is that of its tokenizer, whatever the dataset
    uses of it: fewer logits would be another distribution."""

    def __init__(self, spec: Spec, facts: dict) -> None:
        super().__init__()
        vocabulary = facts["source"]["vocabulary"] if spec.pretrained() else facts["vocabulary"]
        self.context, self.softcap, self.head = spec.context, spec.softcap, spec.width // spec.heads
        blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(vocabulary, spec.width), "h": blocks})
        self.lm_head = nn.Linear(spec.width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            _init(name, parameter)

    def compute(self, ids_BT: Tensor, tap: Tap) -> Tensor:
        x = norm(self.transformer["wte"](ids_BT))
        cos, sin = turns(x, self.head)
        for n, block in enumerate(self.transformer["h"].children()):
            x = block(x, cos, sin, tap, f"blocks.{n}")
        return self.softcap * torch.tanh(self.lm_head(norm(x)) / self.softcap)


def _init(name: str, parameter: Tensor) -> None:
    fan_out, fan_in = parameter.shape
    if name.endswith(("c_proj.weight", "lm_head.weight")):
        nn.init.zeros_(parameter)
    elif name == "transformer.wte.weight":
        nn.init.normal_(parameter)
    else:
        nn.init.normal_(parameter, std=min(1.0, sqrt(fan_out / fan_in)) / sqrt(fan_in))


def fetch(spec: Spec, facts: dict) -> tuple[Model, dict]:
    """The model of the checkpoint that a spec names, for a dataset with these facts, and the facts it can be built from again.
    Raises UserError."""
    weights, source = read(spec)
    if facts["vocabulary"] > source["vocabulary"]:
        raise UserError(
            f"the dataset's vocabulary has {facts['vocabulary']:,} tokens, and that of the checkpoint '{spec.checkpoint}' has "
            f"{source['vocabulary']:,}; give the dataset the checkpoint's own tokenizer"
        )
    facts = {**facts, "source": source}
    with torch.device("meta"):
        model = Model(spec, facts)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for what, names in (
        ("has weights that are not known here, of another nanochat than the first:", weights.keys() - expected.keys()),
        ("lacks", expected.keys() - weights.keys()),
        ("has another shape for", {name for name in expected.keys() & weights.keys() if tuple(weights[name].shape) != expected[name]}),
    ):
        if names:
            raise UserError(f"checkpoint '{spec.checkpoint}' {what} {', '.join(sorted(names))}")
    foreign.require_finite(weights.items(), f"checkpoint '{spec.checkpoint}'")
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False), facts
