"""Seeds: one for each purpose, the same for ever."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.artifacts.seeds import derive

purposes = st.lists(st.one_of(st.sampled_from(["model", "sae", "weights", "order"]), st.integers(0, 9)), max_size=4)


def test_a_seed_is_the_first_63_bits_of_a_sha256():
    """From `printf 0/sae/weights | sha256sum`; another value would change every artifact."""
    assert derive(0, "sae", "weights") == 0x51460F7FF9A4D254 >> 1


@given(st.integers(0, 2**32 - 1), purposes, st.integers(0, 2**32 - 1), purposes)
def test_other_seeds_and_purposes_give_other_seeds(a, purpose, b, other):
    assert (derive(a, *purpose) == derive(b, *other)) == ((a, purpose) == (b, other))


@given(st.integers(0, 2**32 - 1), purposes)
def test_torch_takes_every_seed(seed, purpose):
    assert 0 <= derive(seed, *purpose) < 2**63
    torch.Generator().manual_seed(derive(seed, *purpose))
