"""Training step of BDH over the same step of a literal transcription of the published equations: time, memory, loss, gradients.

    python benchmarks/bdh_step.py [--batch 4] [--length 256] [--steps 3] [--rounds 2] [--threads 2]

Default size (25.3 million parameters), float32, dropout 0.1, AdamW. Each side runs in a process of its own; a step's time is the
least of all steps and rounds, its memory the process' peak above what it held once model and optimizer were made. Losses and
gradients are compared without dropout, those of both sides with float64, on five texts: in some text one of a million neurons
stands so close to 0 that either side's rounding turns it on or off, which moves a gradient by up to 1e-3; hence the median.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.bdh import Model
from pipeline.study.models.bdh import BDH


class Literal(nn.Module):
    """The published equations, one line each. Shapes: (batch, heads, tokens, neurons or width)."""

    def __init__(self, spec: BDH, vocabulary: int) -> None:
        super().__init__()
        H, D, N = spec.heads, spec.width, spec.neurons
        self.levels, self.dropout = spec.layers, spec.dropout
        self.E = nn.Parameter(0.02 * torch.randn(H, D, N))
        self.E_v = nn.Parameter(0.02 * torch.randn(H, D, N))
        self.decoder = nn.Parameter(0.02 * torch.randn(H * N, D))
        self.embed = nn.Parameter(0.02 * torch.randn(vocabulary, D))
        self.head = nn.Parameter(0.02 * torch.randn(D, vocabulary))
        pair = torch.arange(N, dtype=torch.float64) // 2
        self.register_buffer("freqs", (2.0 ** (-32 * pair / N) / (2 * math.pi)).float())

    def rotate(self, v: Tensor) -> Tensor:
        turns = torch.arange(v.shape[2], dtype=v.dtype)[:, None] * self.freqs
        angle = 2 * math.pi * (turns % 1)
        across = torch.stack((-v[..., 1::2], v[..., 0::2]), dim=-1).flatten(-2)
        return v * torch.cos(angle) + across * torch.sin(angle)

    def norm(self, v: Tensor) -> Tensor:
        return F.layer_norm(v, v.shape[-1:])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.embed[ids]).unsqueeze(1)
        for _ in range(self.levels):
            x_sparse = F.relu(x @ self.E)
            q = self.rotate(x_sparse)
            scores = (q @ q.transpose(2, 3)).tril(diagonal=-1)
            y_kv = self.norm(scores @ x)
            y_sparse = F.relu(y_kv @ self.E_v)
            xy_sparse = F.dropout(x_sparse * y_sparse, self.dropout, self.training)
            y = self.norm(xy_sparse.transpose(1, 2).flatten(2).unsqueeze(1) @ self.decoder)
            x = self.norm(x + y)
        return x.squeeze(1) @ self.head


NAMES = {"encoder": "E", "encoder_v": "E_v", "decoder": "decoder", "embed.weight": "embed", "lm_head": "head"}
"""Our parameters, and the transcription's."""


def model(side: str, dropout: float) -> nn.Module:
    spec = BDH(architecture="bdh", dataset="given", dropout=dropout)
    torch.manual_seed(0)
    return Model(spec, {"vocabulary": 256}) if side == "ours" else Literal(spec, 256)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def text(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, length + 1), generator=torch.Generator().manual_seed(seed))


def held() -> float:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(side: str, args: argparse.Namespace) -> dict[str, float]:
    """Least seconds and peak memory of a step."""
    network, ids = model(side, 0.1), text(args.batch, args.length)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    before, times = held(), []
    for _ in range(args.steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss_of(network, ids).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return {"seconds": min(times), "mebibytes": held() - before}


def difference() -> dict[str, list[float]]:
    """Loss in nats and gradients against those of the transcription in float64, with the same weights: how far ours are from it,
    and how far the transcription's own are in float32. Medians over short texts; gradients relative to their norms."""
    ours, literal, exact = model("ours", 0.0), model("literal", 0.0), model("literal", 0.0).double()
    for name, parameter in ours.named_parameters():
        for network in (literal, exact):
            network.get_parameter(NAMES[name]).data.copy_(parameter.data)
    found: dict[str, list[list[float]]] = {}
    for seed in range(5):
        ids = text(1, 32, seed)
        for network in (exact, ours, literal):
            network.zero_grad()
            network.loss = loss_of(network, ids)
            network.loss.backward()
        found.setdefault("loss", []).append([abs(one.loss - exact.loss).item() for one in (ours, literal)])
        for name, parameter in ours.named_parameters():
            wanted, theirs = (one.get_parameter(NAMES[name]).grad for one in (exact, literal))
            apart = [((grad - wanted).norm() / wanted.norm()).item() for grad in (parameter.grad, theirs)]
            found.setdefault(name, []).append(apart)
    return {name: [statistics.median(side) for side in zip(*rows, strict=True)] for name, rows in found.items()}


def child(what: str) -> dict:
    return json.loads(subprocess.run([sys.executable, *sys.argv, "--child", what], check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"batch": 4, "length": 256, "steps": 3, "rounds": 2, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--child", choices=("ours", "literal", "difference"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(difference() if args.child == "difference" else run(args.child, args)))
        return
    rounds = [{side: child(side) for side in ("literal", "ours")} for _ in range(args.rounds)]
    print(f"batch {args.batch} x {args.length} tokens, float32, {args.threads} threads")
    for what, unit in (("seconds", "s"), ("mebibytes", "MiB")):
        literal, ours = (min(one[side][what] for one in rounds) for side in ("literal", "ours"))
        print(f"step: literal {literal:.4g} {unit}, ours {ours:.4g} {unit}: {literal / ours:.2f} times less")
    for name, (ours, literal) in child("difference").items():
        print(f"apart from float64, {name}: literal {literal:.1e}, ours {ours:.1e}")


if __name__ == "__main__":
    main()
