"""Models with weights that are nowhere trivial."""

import pytest
import torch

from pipeline.models import checkpoint


@pytest.fixture
def build():
    """A model in inference mode whose every parameter and statistic is random: `build(facts, architecture=..., ...)`."""

    def build(facts: dict, **spec):
        model, settings = checkpoint.build(spec, facts)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            for name, value in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        return model.eval(), settings

    return build


@pytest.fixture
def gpt(build):
    """A small language model."""
    return build({"vocabulary": 11}, architecture="gpt", layers=3, width=12, heads=3, mlp_width=20, context=8)[0]


@pytest.fixture
def ids() -> torch.Tensor:
    """Four sequences of eight tokens."""
    return torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(1))
