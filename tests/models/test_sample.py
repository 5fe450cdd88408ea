"""Sampled text: drawn from the model's own distribution, cut to the likeliest, the same for a seed."""

import torch

from pipeline.models.sample import go_on


def test_the_likeliest_is_taken_at_k_1(gpt):
    found = go_on(gpt, [1, 2], 12, 1, 1.0, 0)
    ids = [1, 2]
    for _ in range(12):
        logits = gpt(torch.tensor([ids[-8:]]))[0, -1]
        ids.append(int(logits.argmax()))
    assert found == ids[2:]


def test_a_seed_decides_it(gpt):
    assert go_on(gpt, [1], 20, None, 1.0, 3) == go_on(gpt, [1], 20, None, 1.0, 3)
    assert go_on(gpt, [1], 20, None, 1.0, 3) != go_on(gpt, [1], 20, None, 1.0, 4)


def test_only_the_k_likeliest_are_drawn(gpt):
    logits = gpt(torch.tensor([[4]]))[0, -1]
    drawn = {go_on(gpt, [4], 1, 3, 5.0, seed)[0] for seed in range(60)}
    assert drawn == set(logits.topk(3).indices.tolist())


def test_shares_are_those_of_the_softmax_at_its_temperature(gpt):
    expected = (gpt(torch.tensor([[4]]))[0, -1].double() / 2).softmax(0)
    drawn = torch.tensor([go_on(gpt, [4], 1, None, 2.0, seed)[0] for seed in range(1500)])
    shares = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert (shares - expected).abs().max() < 0.05
