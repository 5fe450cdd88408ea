"""Training tokens per second of `gpt` beside a plain loop of the same model, as nanoGPT has it; on a GPU also its share of peak.

    python benchmarks/gpt_training.py                 on the processor: float32, --threads threads
    python benchmarks/gpt_training.py --gpu           on a GPU: 30 M and 124 M parameters, bfloat16

Both train the same shape on the same random tokens with AdamW and clipping; they take turns, and the best of the turns counts.
"""

import argparse
import sys
import time
from math import sqrt
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models import checkpoint
from pipeline.models.examples import TokenExamples
from pipeline.models.train import Run

SHAPES = {
    "bytes": {"vocabulary": 256, "layers": 4, "width": 128, "heads": 4, "context": 64, "batch": 32},
    "30M": {"vocabulary": 50257, "layers": 6, "width": 384, "heads": 6, "context": 512, "batch": 2},
}
GPU_SHAPES = {
    "30M": {"vocabulary": 50257, "layers": 6, "width": 384, "heads": 6, "context": 512, "batch": 64},
    "124M": {"vocabulary": 50257, "layers": 12, "width": 768, "heads": 12, "context": 1024, "batch": 16},
}
PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 operations per second, as the makers state them."""


class PlainBlock(nn.Module):
    """A pre-LN block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (one.view(b, t, self.heads, c // self.heads).transpose(1, 2) for one in self.qkv(self.norm1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).contiguous().view(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Plain(nn.Module):
    """The yardstick: a GPT-2 as one writes it in a page."""

    def __init__(self, shape: dict) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(shape["vocabulary"], shape["width"]), nn.Embedding(shape["context"], shape["width"])
        self.blocks = nn.ModuleList(PlainBlock(shape["width"], shape["heads"]) for _ in range(shape["layers"]))
        self.norm = nn.LayerNorm(shape["width"])
        self.head = nn.Linear(shape["width"], shape["vocabulary"], bias=False)
        self.token.weight = self.head.weight
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 / sqrt(2 * shape["layers"]))

    def forward(self, ids, targets):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def plain_steps(shape: dict, ids: np.ndarray, device: torch.device):
    """A function that does so many steps of the plain loop."""
    model = Plain(shape).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=device.type == "cuda")
    length = shape["context"]

    def steps(count: int) -> None:
        for _ in range(count):
            at = torch.randint(len(ids) - length, (shape["batch"],))
            x = torch.stack([torch.from_numpy(ids[i : i + length].astype(np.int64)) for i in at]).to(device)
            y = torch.stack([torch.from_numpy(ids[i + 1 : i + 1 + length].astype(np.int64)) for i in at]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(x, y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def our_steps(shape: dict, ids: np.ndarray, device: torch.device, compiled: bool):
    """A function that does so many steps of a run of ours, and the model's number of parameters."""
    training = {"batch": shape["batch"], "steps": 10**6, "validate_every": 10**6, "compile": compiled}
    training |= {"precision": "bfloat16"} if device.type == "cuda" else {}
    spec = {"architecture": "gpt", "training": training, **{key: shape[key] for key in ("layers", "width", "heads", "context")}}
    model, settings = checkpoint.build(spec, {"vocabulary": shape["vocabulary"]})
    split = TokenExamples.__new__(TokenExamples)
    split.ids, split.length, split.special = ids, shape["context"], torch.empty(0, dtype=torch.int64)
    run = Run(model.to(device), settings, split, None, ())
    batches = run.batches()

    def steps(count: int) -> None:
        for _ in range(count):
            run.step(*next(batches))

    return steps, sum(p.numel() for p in model.parameters())


def best(count: int, turns: int, device: torch.device, rivals) -> list[float]:
    """Seconds per step of each of some rivals, the least of some turns."""
    least = [float("inf")] * len(rivals)
    for one in rivals:
        one(3)
    for _ in range(turns):
        for number, one in enumerate(rivals):
            if device.type == "cuda":
                torch.cuda.synchronize()
            begun = time.perf_counter()
            one(count)
            if device.type == "cuda":
                torch.cuda.synchronize()
            least[number] = min(least[number], (time.perf_counter() - begun) / count)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile on our side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if options.gpu else "cpu")
    print(
        f"{'shape':>6} {'parameters':>12} {'plain tokens/s':>15} {'ours tokens/s':>14} {'ratio':>6}"
        + ("  share of peak" if options.gpu else "")
    )
    for name, shape in (GPU_SHAPES if options.gpu else SHAPES).items():
        ids = np.random.default_rng(0).integers(0, shape["vocabulary"], 2_000_000).astype(np.uint16)
        ours, parameters = our_steps(shape, ids, device, options.compile)
        seconds = best(20 if name == "bytes" or options.gpu else 3, options.turns, device, [plain_steps(shape, ids, device), ours])
        tokens = shape["batch"] * shape["context"]
        line = f"{name:>6} {parameters:12,} {tokens / seconds[0]:15,.0f} {tokens / seconds[1]:14,.0f} {seconds[0] / seconds[1]:6.2f}"
        if options.gpu:
            operations = tokens * (6 * parameters + 12 * shape["layers"] * shape["width"] * shape["context"])
            peak = next((value for key, value in PEAK.items() if key in torch.cuda.get_device_name()), None)
            line += f"  {operations / seconds[1] / peak:.1%}" if peak else "  unknown"
        print(line)


if __name__ == "__main__":
    main()
