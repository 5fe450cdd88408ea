"""Decoders of unit rows."""

import torch

from pipeline.saes import decoder


def test_no_part_of_the_gradient_along_a_row_is_left_and_the_rest_stays():
    W_dec = torch.nn.Parameter(torch.tensor([[0.6, 0.8], [1.0, 0.0]]))
    W_dec.grad = torch.tensor([[3.0, 4.0], [5.0, 7.0]])
    decoder.remove_parallel(W_dec)
    torch.testing.assert_close(W_dec.grad, torch.tensor([[0.0, 0.0], [0.0, 7.0]]))


def test_rows_come_to_norm_one_and_keep_their_direction():
    W_dec = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, -1e-3], [0.0, 0.0]]))
    decoder.renormalise(W_dec)
    torch.testing.assert_close(W_dec.detach(), torch.tensor([[0.6, 0.8], [0.0, -1.0], [0.0, 0.0]]))


def test_without_a_gradient_there_is_nothing_to_remove():
    W_dec = torch.nn.Parameter(torch.eye(2))
    decoder.remove_parallel(W_dec)
    assert W_dec.grad is None


def test_norms_and_their_gradients_are_pytorchs():
    W_dec = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    W_dec[4] = 0
    weights, found = torch.arange(30.0, dtype=torch.float64), []
    for norms in (decoder.norms, lambda rows: rows.norm(dim=1)):
        rows = W_dec.clone().requires_grad_()
        (norms(rows) * weights).sum().backward()
        found.append((norms(rows), rows.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
