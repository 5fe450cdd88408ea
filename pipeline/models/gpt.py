"""A GPT-2 style language model (Radford et al. 2019).

- pre-LN, exact GELU, learned positions, head tied to the embedding
- no biases in linear layers; layer norms have them
- init N(0, 0.02), and 0.02 / sqrt(2 layers) for the two maps that write to the residual stream
Shapes: B sequences, T tokens, C width, H heads.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.hooks import Tap
from pipeline.models.language import LanguageModel
from pipeline.study.models.gpt import GPT as Spec


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        hidden = spec.mlp_width or 4 * spec.width
        self.heads, self.dropout = spec.heads, spec.dropout
        self.norm1, self.norm2 = nn.LayerNorm(spec.width), nn.LayerNorm(spec.width)
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.attn_out = nn.Linear(spec.width, spec.width, bias=False)
        self.mlp_in = nn.Linear(spec.width, hidden, bias=False)
        self.mlp_out = nn.Linear(hidden, spec.width, bias=False)

    def attention(self, x_BTC: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        q, k, v = self.qkv(x_BTC).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        return self.attn_out(y.transpose(1, 2).reshape(B, T, C))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(self, x_BTC: Tensor, tap: Tap, at: str) -> Tensor:
        x = tap(f"{at}.resid_pre", x_BTC)
        x = tap(f"{at}.resid_mid", x + tap(f"{at}.attn_out", self.drop(self.attention(self.norm1(x)))))
        hidden = tap(f"{at}.mlp_hidden", F.gelu(self.mlp_in(self.norm2(x))))
        return tap(f"{at}.resid_post", x + tap(f"{at}.mlp_out", self.drop(self.mlp_out(hidden))))


class Model(LanguageModel):
    """token ids (B, T) -> logits (B, T, vocabulary)."""

    def __init__(self, spec: Spec, facts: dict) -> None:
        super().__init__()
        self.dropout, self.context = spec.dropout, spec.context
        self.token = nn.Embedding(facts["vocabulary"], spec.width)
        self.position = nn.Embedding(spec.context, spec.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(spec.width)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("attn_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / sqrt(2 * spec.layers) if writes else 0.02)

    def compute(self, ids_BT: Tensor, tap: Tap) -> Tensor:
        positions = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x = F.dropout(self.token(ids_BT) + self.position(positions), self.dropout, self.training)
        for n, block in enumerate(self.blocks):
            x = block(x, tap, f"blocks.{n}")
        return F.linear(self.norm(x), self.token.weight)
