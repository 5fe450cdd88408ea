"""Where and in which precision a run computes."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import torch


def device() -> torch.device:
    """The first GPU, or the process' own under torchrun; the processor where there is none, or SAEFLOW_DEVICE says so."""
    name = os.environ.get("SAEFLOW_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)


def has_bfloat16(where: torch.device) -> bool:
    """Whether the machine has dense products in bfloat16; others are emulated, slower than float32 (oneDNN's, on any AVX512)."""
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)


def is_intel() -> bool:
    """Whether the processor is known to be Intel's, for whose processors MKL is made."""
    about = Path("/proc/cpuinfo")
    return about.is_file() and "GenuineIntel" in about.read_text()


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context a forward runs in for `precision`, as a study says it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
