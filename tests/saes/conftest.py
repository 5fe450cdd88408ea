"""SAEs with weights that are nowhere trivial."""

import pytest
import torch

from pipeline.saes import checkpoint
from tests.saes.runs import rows


@pytest.fixture
def build():
    """An SAE whose every parameter is random, and its settings: `build(width, architecture=..., ...)`; `out` makes it a transcoder."""

    def build(width: int = 6, seed: int = 7, bias: float = 0.0, out: int | None = None, **spec):
        if out is not None:
            spec |= {"hook": "a", "output": "b", "outputs": ["b"]}
        sae, settings = checkpoint.build({"latents": 20, **spec}, width, out)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            for name in sae._BIASES:
                getattr(sae, name).add_(bias)
            for name in sae._THRESHOLDS:
                getattr(sae, name).copy_(torch.rand(len(sae.W_dec), generator=generator))
        return sae, settings

    return build


@pytest.fixture
def x() -> torch.Tensor:
    """Nine rows of width six."""
    return 2 * torch.randn(9, 6, generator=torch.Generator().manual_seed(3)) + 1


@pytest.fixture
def store(make_store):
    """A store of 300 rows of width eight."""
    return make_store(rows(), chunk_rows=50, shard_rows=100)


@pytest.fixture
def validation(make_store):
    """Other rows of the same kind."""
    return make_store(rows(200, seed=1), chunk_rows=50, shard_rows=100, name="validation")
