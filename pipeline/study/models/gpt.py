"""A GPT-2 style language model."""

from typing import Literal, Self

from pydantic import model_validator

from pipeline.study.base import Count, Share
from pipeline.study.language import Language

HOOKS = {
    "resid_pre": "the residual stream before the block",
    "attn_out": "what attention adds to the stream",
    "resid_mid": "the stream between attention and MLP",
    "mlp_hidden": "input of the MLP's last linear map, after its GELU",
    "mlp_out": "what the MLP adds to the stream",
    "resid_post": "the residual stream after the block",
}


class GPT(Language):
    """Pre-LN transformer: exact GELU, learned positions, tied head, no biases in linear layers, GPT-2 initialisation."""

    architecture: Literal["gpt"]
    layers: Count = 4
    width: Count = 128
    heads: Count = 4
    mlp_width: Count | None = None
    """Width of `mlp_hidden`; 4 x width when not given."""
    context: Count = 64
    """Tokens a sequence has at most."""
    dropout: Share = 0.0

    def hooks(self) -> dict[str, int]:
        hidden = self.mlp_width or 4 * self.width
        return {f"blocks.{n}.{hook}": hidden if hook == "mlp_hidden" else self.width for n in range(self.layers) for hook in HOOKS}

    def meaning(self, hook: str) -> str:
        return HOOKS[hook.rsplit(".", 1)[1]]

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        return self
