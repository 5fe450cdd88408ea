"""A run that is killed goes on where it stood, and ends in the bytes of one that never was: for every architecture there is."""

import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline.saes import compiled, kernels, screen
from pipeline.saes.run import Run
from pipeline.steps import train_sae
from pipeline.study.kinds import kinds
from tests.fresh import fresh

STEPS = 24
TRAINING = {
    "epochs": 3, "batch": 30, "lr": 0.01, "schedule": {"shape": "plateau", "warmup": 4, "patience": 0}, "points": 8,
    "dead_share": 0.1, "resample": [0.5], "keep": "best", "snapshots": [5, 13], "clip": 1.0, "when_wrong": "warn",
}  # fmt: skip


def spec(architecture: str, **more) -> dict:
    """Settings with all that a run may carry: counters, moments, best and last good weights, units, files of stated steps."""
    kind = kinds("saes")[architecture]
    given = {"architecture": architecture, "activations": "a", "latents": 24, "normalise": {"centre": True, "scale": "norm"}}
    given |= {"k": 3, "k_start": 8, "k_anneal": 0.5} if "k" in kind.model_fields else {}
    settings = kind.model_validate({**given, "training": TRAINING, **more}).settings()
    return {**settings, "hook": "x", "metadata": {"model_name": "m"}}


def as_if_large() -> None:
    """Few latents are found from a rough product and multiplied by loops, by two threads, at this size too."""
    screen.LEAST, screen._MOST, compiled.FROM, compiled._ROWS, kernels._TRANSPOSED_FROM, kernels.SPARSE_BELOW = 1, 1.0, 1, 8, 1, 1.0


def training(specs: dict, stores: list[Path], out: Path, begins: int, ends: int | None, large: bool = False) -> None:
    """Trains in this process, which is to go on after step `begins`, and kills itself after step `ends`."""
    os.environ["SAEFLOW_SNAPSHOT_SECONDS"] = "0"  # here: the server that forks may be older than the test
    if large:
        as_if_large()
    step, seen = Run.step, []

    def killed(run, *batch):
        if not seen and run.at.step != begins:
            os._exit(3)
        seen.append(run.at.step)
        row = step(run, *batch)
        if run.at.step == ends and run is last[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    last: list = []
    begun = train_sae.begun

    def made(*given):
        last[:] = [begun(*given)]
        return last[0]

    train_sae.begun = made
    Run.step = killed
    train_sae.trained(specs, stores[0], stores[1:], out)


@pytest.fixture
def stores(make_store) -> list[Path]:
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(12, 8))
    made = []
    for name, rows in (("train", 240), ("validation", 100)):
        values = 2.0 + (generator.random((rows, 12)) * (generator.random((rows, 12)) < 0.15)) @ directions
        made.append(make_store(values, chunk_rows=30, shard_rows=60, name=name).artifact.folder / "manifest.json")
    return made


@pytest.fixture
def process():
    """`process(*arguments)` of `training`: its exit code, in a process of its own."""

    def run(*arguments) -> int | None:
        one = fresh.Process(target=training, args=arguments)
        one.start()
        one.join(600)
        return one.exitcode

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "run.json"}


def moments(seed: str, count: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, STEPS), count))


ALL = [*((name, {}) for name in kinds("saes")), ("jumprelu", {"target_l0": 3})]
"""The controller of a target has a state of its own."""


@pytest.mark.parametrize(("architecture", "more"), ALL, ids=str)
def test_a_run_that_is_killed_ends_in_the_same_bytes(architecture, more, stores, process, tmp_path):
    specs = {"sae": spec(architecture, **more)}
    assert process(specs, stores, tmp_path / "whole", 0, None) == 0
    begins = 0
    for ends in moments(architecture, 3):
        assert process(specs, stores, tmp_path / "killed", begins, ends) == -signal.SIGKILL
        begins = ends - 1  # the last step had no snapshot yet
    assert process(specs, stores, tmp_path / "killed", begins, None) == 0
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
    assert {"sae/manifest.json", "sae/snapshots/step_5.safetensors", "sae/snapshots/step_13.safetensors"} <= whole.keys()
    assert not any(".resume" in name for name in killed)


@pytest.mark.parametrize(
    ("architecture", "more"), [("topk", {}), ("batchtopk", {}), ("gated", {}), ("jumprelu", {"target_l0": 3})], ids=str
)
def test_so_does_one_whose_products_are_sparse(architecture, more, stores, process, tmp_path):
    specs = {"sae": spec(architecture, threads=2, **more)}
    (ends,) = moments(f"{architecture} {more}", 1)
    assert process(specs, stores, tmp_path / "whole", 0, None, True) == 0
    assert process(specs, stores, tmp_path / "killed", 0, ends, True) == -signal.SIGKILL
    assert process(specs, stores, tmp_path / "killed", ends - 1, None, True) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert process(specs, stores, tmp_path / "other", 0, None) == 0
    assert contents(tmp_path / "whole") != contents(tmp_path / "other"), "they were not"


def test_variants_that_are_trained_together_go_on_together(stores, process, tmp_path):
    specs = {f"k={k}": spec("topk", k=k) for k in (2, 3)}
    assert process(specs, stores, tmp_path / "whole", 0, None) == 0
    begins = 0
    for ends in moments("together", 2):
        assert process(specs, stores, tmp_path / "killed", begins, ends) == -signal.SIGKILL
        begins = ends - 1
    assert process(specs, stores, tmp_path / "killed", begins, None) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_variants_that_are_trained_together_are_those_trained_alone(stores, process, tmp_path):
    """By bytes, whatever the others do: also when one of them ends early."""
    specs = {
        "topk": spec("topk", training={**TRAINING, "stop_after": 1}),
        "relu": spec("relu", l1=0.3),
        "wide": spec("topk", latents=40, normalise={}),
    }
    assert process(specs, stores, tmp_path / "together", 0, None) == 0
    for name, one in specs.items():
        assert process({name: one}, stores, tmp_path / "alone", 0, None) == 0
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_a_snapshot_of_other_settings_is_not_taken_up(stores, process, tmp_path):
    assert process({"sae": spec("topk")}, stores, tmp_path / "a", 0, 9) == -signal.SIGKILL
    assert process({"sae": spec("topk", k=2)}, stores, tmp_path / "a", 0, None) == 0
    assert process({"sae": spec("topk", k=2)}, stores, tmp_path / "b", 0, None) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
