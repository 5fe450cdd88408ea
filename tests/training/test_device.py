"""Whether a machine has products in bfloat16, by what its processor says of itself."""

import pytest
import torch

from pipeline.training.device import has_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(("avx", "amx", "has"), [(False, False, False), (True, False, True), (False, True, True)])
def test_a_processor_has_bfloat16_where_it_multiplies_it_itself(monkeypatch, avx, amx, has):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_bfloat16(CPU) == has


def test_a_build_that_cannot_say_has_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not has_bfloat16(CPU)
