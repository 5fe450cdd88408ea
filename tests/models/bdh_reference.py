"""BDH from its published equations, to compare with: slow and plain, with parameters named as in the reference implementation."""

from math import cos, pi, sin

import torch
from torch import nn
from torch.nn import functional as F


class Attn(nn.Module):
    """Frequencies, in turns per token."""

    def __init__(self, neurons):
        super().__init__()
        turns = [65536.0 ** (-2 * (i // 2) / neurons) / (2 * pi) for i in range(neurons)]
        self.register_buffer("freqs", torch.tensor(turns, dtype=torch.float32).view(1, 1, 1, neurons))


class Reference(nn.Module):
    """token ids (T,) -> logits (T, vocabulary), in inference."""

    def __init__(self, n_layer, n_embd, dropout, n_head, mlp_internal_dim_multiplier, vocab_size):
        super().__init__()
        neurons = mlp_internal_dim_multiplier * n_embd // n_head
        self.levels, self.heads = n_layer, n_head
        self.encoder = nn.Parameter(torch.zeros(n_head, n_embd, neurons))
        self.encoder_v = nn.Parameter(torch.zeros(n_head, n_embd, neurons))
        self.decoder = nn.Parameter(torch.zeros(n_head * neurons, n_embd))
        self.embed = nn.Embedding(vocab_size, n_embd)
        self.lm_head = nn.Parameter(torch.zeros(n_embd, vocab_size))
        self.attn = Attn(neurons)

    def rotated(self, v, t):
        """v (N,) of position t, pair by pair."""
        found = []
        for a, b, turns in zip(v[0::2], v[1::2], self.attn.freqs.flatten()[::2].tolist(), strict=True):
            angle = 2 * pi * (t * turns % 1)
            found += [a * cos(angle) - b * sin(angle), b * cos(angle) + a * sin(angle)]
        return torch.stack(found)

    def forward(self, ids, recurrent=False, seen=None):
        """`recurrent`: attention reads from a matrix that it writes to, instead of from all tokens before. `seen` gets the hooks."""
        seen = {} if seen is None else seen
        D, T = self.lm_head.shape[0], len(ids)
        x = F.layer_norm(self.embed(ids), (D,))
        for n in range(self.levels):
            x_sparse = torch.stack([F.relu(x @ self.encoder[h]) for h in range(self.heads)])
            read = self.recurrence(x_sparse, x) if recurrent else self.attention(x_sparse, x)
            y_kv = F.layer_norm(read, (D,))
            y_sparse = torch.stack([F.relu(y_kv[h] @ self.encoder_v[h]) for h in range(self.heads)])
            xy_sparse = x_sparse * y_sparse
            y = F.layer_norm(xy_sparse.transpose(0, 1).reshape(T, -1) @ self.decoder, (D,))
            x = F.layer_norm(x + y, (D,))
            for hook, value in {"x_sparse": x_sparse, "y_kv": y_kv, "xy_sparse": xy_sparse, "resid_post": x[None]}.items():
                seen[f"blocks.{n}.{hook}"] = value.transpose(0, 1).flatten(1)
        return x @ self.lm_head

    def attention(self, x_sparse, x):
        read = torch.zeros(self.heads, *x.shape, dtype=x.dtype)
        for h in range(self.heads):
            q = [self.rotated(v, t) for t, v in enumerate(x_sparse[h])]
            for t in range(len(x)):
                read[h, t] = sum((q[t] @ q[s]) * x[s] for s in range(t)) if t else 0
        return read

    def recurrence(self, x_sparse, x):
        read = torch.zeros(self.heads, *x.shape, dtype=x.dtype)
        for h in range(self.heads):
            memory = torch.zeros(x_sparse.shape[2], x.shape[1], dtype=x.dtype)
            for t in range(len(x)):
                q = self.rotated(x_sparse[h, t], t)
                read[h, t] = q @ memory
                memory = memory + torch.outer(q, x[t])
        return read
