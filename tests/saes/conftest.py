"""SAEs with weights that are nowhere trivial."""

import pytest
import torch

from pipeline.saes import checkpoint


@pytest.fixture
def build():
    """An SAE whose every parameter is random, and its settings: `build(width, architecture=..., ...)`."""

    def build(width: int = 6, seed: int = 7, bias: float = 0.0, **spec):
        sae, settings = checkpoint.build({"latents": 20, **spec}, width)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            sae.b_enc += bias
        return sae, settings

    return build


@pytest.fixture
def x() -> torch.Tensor:
    """Nine rows of width six."""
    return 2 * torch.randn(9, 6, generator=torch.Generator().manual_seed(3)) + 1
