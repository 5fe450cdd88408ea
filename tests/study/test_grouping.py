"""Which variants of an SAE are trained in one job, and what the jobs that train are told."""

import json
import re
from types import SimpleNamespace

import pytest

from pipeline.study.graph import Graph
from pipeline.study.sae_jobs import set_resources

SWEPT = "    train_together: true\n    sweep: {k: [4, 8], seed: [0, 1]}\n"


def graph(text, read, more: str = "", **replaced) -> Graph:
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return Graph(read(text.replace("    k: 4\n", more)))


def test_variants_of_an_entry_that_share_a_seed_are_one_job(text, read):
    assert graph(text, read, SWEPT).together() == [[f"topk_k={k}_seed={seed}" for k in (4, 8)] for seed in (0, 1)]


@pytest.mark.parametrize("key", ["training.batch", "training.epochs", "training.memory_mb", "training.processes", "threads"])
def test_variants_with_other_batches_are_other_jobs(text, read, key):
    found = graph(text, read, f"    train_together: true\n    sweep: {{k: [4, 8], {key}: [1, 2]}}\n")
    assert len(found.together()) == 2
    assert all(len(group) == 2 for group in found.together())


def test_variants_that_have_nobody_to_share_with_are_trained_alone(text, read):
    assert graph(text, read, "    train_together: true\n    sweep: {seed: [0, 1]}\n").together() == []
    assert graph(text, read, "    sweep: {k: [4, 8]}\n").together() == []


def test_the_rule_for_one_claims_all_but_these(text, read):
    alone = re.compile(graph(text, read, SWEPT).alone() + "$")
    assert not any(alone.match(f"topk_k={k}_seed={seed}") for k in (4, 8) for seed in (0, 1))
    assert all(alone.match(name) for name in ("relu", "topk", "topk_k=4", "topk_k=4_seed=10", "topk_k=16_seed=0", "xtopk_k=4_seed=0"))
    assert re.compile(graph(text, read).alone() + "$").match("topk_k=4_seed=0")


def test_the_job_is_told_the_settings_of_each(text, read):
    found, names = graph(text, read, SWEPT), ["topk_k=4_seed=0", "topk_k=8_seed=0"]
    hook = SimpleNamespace(activations="acts", hook="layer2")
    told = json.loads(found.spec_of_saes(hook, names=names))
    assert list(told) == names
    for name in names:
        assert told[name] == json.loads(found.spec("sae", SimpleNamespace(activations="acts", hook="layer2", sae=name)))


def test_a_transcoder_is_told_its_own_output_alone(text, read):
    """What is predicted from another hook retrains nothing here."""
    both = "    hooks: [layer1]\n    outputs: [layer2]\n"
    found = graph(text, read, **{"    hooks: [layer2]\n": both})
    spec = json.loads(found.spec("sae", SimpleNamespace(activations="acts", hook="layer1", sae="topk")))
    assert (spec["hook"], spec["output"], spec["outputs"]) == ("layer1", "layer2", ["layer2"])
    spec = json.loads(found.spec("sae", SimpleNamespace(activations="acts", hook="layer1", sae="relu")))
    assert "output" not in spec


def test_the_store_to_measure_on_is_an_input_where_there_is_one(text, read):
    at = SimpleNamespace(activations="acts", hook="layer2", sae="relu")
    assert graph(text, read, "    k: 4\n").validation_manifest(at) == ["results/small/activations/acts/validation/manifest.json"]
    apart = "    hooks: [layer1, layer2]\n    splits: [train, test]\n"
    more = "    k: 4\nevaluation: {split: test}\n"
    assert graph(text, read, more, **{"    hooks: [layer1, layer2]\n": apart}).validation_manifest(at) == []


def test_cores_are_those_of_all_processes(text, read):
    found = graph(text, read, "    threads: 2\n    training: {processes: 3}\n    k: 4\n")
    assert found.cores_of_sae(SimpleNamespace(activations="acts", hook="layer2", sae="topk")) == 6


def at(**named) -> SimpleNamespace:
    return SimpleNamespace(activations="acts", hook="layer2", **named)


def test_a_job_asks_for_the_memory_of_its_weights(text, read):
    """Of latents 16 wide; ten copies of what each variant learns, and what a step computes, once."""
    latents, mb = 2**18, 2**20
    small, wide = (graph(text.replace("latents: 32", f"latents: {n}"), read, SWEPT) for n in (32, latents))
    weights, step = 10 * 4 * latents * 2 * 16 / mb, 6 * 4 * latents * 1024 / mb
    asked = [[one.memory_of_saes(at(), 1, [f"topk_k={k}_seed=0" for k in ks]) for ks in ((4,), (4, 8))] for one in (small, wide)]
    assert asked[0][0] == asked[0][1] == pytest.approx(2000 + 2 * 2048, abs=3), "what a run of small SAEs takes, however many"
    assert asked[1][0] - asked[0][0] == pytest.approx(weights + step, rel=0.01)
    assert asked[1][1] - asked[1][0] == pytest.approx(weights, abs=2)
    assert wide.memory_of_saes(at(), 2, ["topk_k=4_seed=0"]) == 2 * asked[1][0]


def test_each_process_of_a_run_has_its_own_rows_and_weights(text, read):
    two = graph(text, read, "    k: 4\n    training: {processes: 2}\n").memory_of_saes(at(), 1, ["topk"])
    assert two == pytest.approx(1500 + 2 * (500 + 2 * 2048), abs=3)


def test_what_is_set_for_train_saes_is_set_for_all_that_train_together():
    given = {"train_saes": 1, "train_saes_b": 2, "harvest": 3}
    assert set_resources(given, [["a", "x"], ["b", "y"]]) == {**given, "train_saes_a": 1}
    assert set_resources({"harvest": 3}, [["a", "x"]]) == {"harvest": 3}
