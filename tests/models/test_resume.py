"""A run that is killed and started again ends in the bytes of one that was not. The kill is SIGKILL, of a real process."""

import json
import os
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.models import checkpoint
from pipeline.models.examples import examples
from pipeline.models.train import Run
from pipeline.steps import train_model
from pipeline.training.snapshot import Snapshots
from tests.fresh import fresh

MLP = {
    "architecture": "mlp", "hidden": [16, 16], "batch_norm": [1], "threads": 1, "seed": 3,
    "training": {"epochs": 80, "batch": 20, "lr": 0.01, "validate_every": 3, "keep": "best"},
}  # fmt: skip
GPT = {
    "architecture": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 8, "dropout": 0.1, "threads": 1, "seed": 3,
    "training": {
        "steps": 150, "batch": 4, "lr": 0.01, "validate_every": 7, "accumulate": 2,
        "schedule": {"shape": "plateau", "warmup": 5, "patience": 0},
    },
    "objectives": [
        {"objective": "orthogonality", "weight": 0.1, "tokens": 8}, {"objective": "l0-gates"}, {"objective": "online-sae", "every": 2},
    ],
}  # fmt: skip


def command(spec, dataset, out) -> list[str]:
    options = ["--spec", json.dumps(spec), "--dataset", str(dataset.folder / MANIFEST), "--out", str(out)]
    return [sys.executable, "-m", "pipeline.steps.train_model", *options]


def reached(out) -> int:
    """The step of the snapshot in `out`; -1 when there is none. The file is opened once: it may be replaced meanwhile."""
    try:
        with (out / ".resume" / "run.safetensors").open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except FileNotFoundError:
        return -1
    return json.loads(header["__metadata__"]["values"])["step"]


def killed_at(step: int, out: Path, run: subprocess.Popen | BaseProcess) -> int:
    """Kills a run when its snapshot in `out` has reached `step`. Returns the step that the snapshot had."""
    lives, ends = (lambda: run.poll() is None, run.wait) if isinstance(run, subprocess.Popen) else (run.is_alive, run.join)
    while reached(out) < step:
        assert lives(), "the run ended before it could be killed"
        time.sleep(0.002)
    run.kill()
    ends()
    found = reached(out)
    time.sleep(0.5)
    assert reached(out) == found, "something of the run outlived it"
    return found


def training(spec: dict, dataset: Path, out: Path) -> None:
    """The step, with a snapshot after each step of the run."""
    os.environ["SAEFLOW_SNAPSHOT_SECONDS"] = "0"  # here: the server that forks may be older than the test
    train_model.main(spec, dataset, out)


def begun(*arguments) -> BaseProcess:
    """`training` in a process of its own."""
    process = fresh.Process(target=training, args=arguments)
    process.start()
    return process


@pytest.fixture
def data(request, make_table, make_tokens):
    if request.param is MLP:
        rows = np.random.default_rng(0).normal(size=(100, 3))
        return request.param, make_table(rows, rows[:, 0] - 2 * rows[:, 1], held_out=10)
    ids = np.random.default_rng(0).integers(0, 12, size=500)
    return request.param, make_tokens(ids[:400], 12, validation=ids[400:])


@pytest.mark.slow
@pytest.mark.parametrize("data", [MLP, GPT], indirect=True, ids=["mlp", "gpt"])
def test_a_killed_run_ends_in_the_same_bytes(data, tmp_path):
    spec, dataset = data
    train_model.main(spec, dataset.folder / MANIFEST, tmp_path / "whole")
    killed = [killed_at(step, tmp_path / "killed", begun(spec, dataset.folder / MANIFEST, tmp_path / "killed")) for step in (1, 20, 41)]
    assert killed == sorted(killed)
    done = subprocess.run(command(spec, dataset, tmp_path / "killed"), check=True, capture_output=True, text=True)
    assert "discarded" not in done.stderr
    assert (tmp_path / "killed" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert not (tmp_path / "killed" / ".resume").exists()


@pytest.mark.parametrize("data", [MLP, GPT], indirect=True, ids=["mlp", "gpt"])
def test_every_tensor_and_number_of_a_run_is_in_its_snapshot(data):
    """Taken after any step and put into a fresh run, it leads to the same weights and the same curve."""
    spec, dataset = data
    spec = {**spec, "training": {**spec["training"], **({"steps": 75} if spec is GPT else {"epochs": 20})}}
    split, other = (examples(dataset, name, spec.get("context")) for name in ("train", "validation"))

    def fresh() -> Run:
        model, settings = checkpoint.build(spec, dataset.facts)
        return Run(model, settings, split, other, checkpoint.objectives(settings, model))

    def state(run) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in run.tensors().items()}

    whole = fresh()
    taken = {}
    for inputs, targets in whole.batches():
        whole.step(inputs, targets)
        if whole.at.step in (2, 7, 31):
            tensors = {name: tensor.clone() for name, tensor in whole.tensors().items()}
            taken[whole.at.step] = tensors, json.loads(json.dumps(vars(whole.at)))
    for tensors, values in taken.values():
        again = fresh()
        again.restore(tensors, values)
        for inputs, targets in again.batches():
            again.step(inputs, targets)
        assert state(again) == state(whole)
        assert again.at.rows == whole.at.rows
        assert again.at.best_step == whole.at.best_step


@pytest.mark.parametrize("data", [MLP], indirect=True)
def test_two_at_once_are_refused(data, tmp_path):
    """A step can outlive the workflow that started it."""
    spec, dataset = data
    told = rf"\.resume: process {os.getpid()} is still at work on this run"
    with Snapshots(tmp_path / "out", "x").alone(), pytest.raises(UserError, match=told):
        train_model.main(spec, dataset.folder / MANIFEST, tmp_path / "out")
    train_model.main(spec, dataset.folder / MANIFEST, tmp_path / "out")


@pytest.mark.parametrize("data", [MLP], indirect=True)
def test_a_damaged_snapshot_is_discarded_and_said(data, tmp_path, capfd):
    spec, dataset = data
    (tmp_path / "out/.resume").mkdir(parents=True)
    (tmp_path / "out/.resume/run.safetensors").write_bytes(b"12345")
    train_model.main(spec, dataset.folder / MANIFEST, tmp_path / "out")
    assert "run.safetensors: not readable" in capfd.readouterr().err


@pytest.mark.parametrize("data", [MLP], indirect=True)
def test_a_snapshot_of_other_settings_is_discarded_and_said(data, tmp_path, monkeypatch, capfd):
    spec, dataset = data
    spec = {**spec, "training": {**spec["training"], "epochs": 8}}
    monkeypatch.setenv("SAEFLOW_SNAPSHOT_SECONDS", "0")
    monkeypatch.setattr(train_model.Snapshots, "remove", lambda self: None)
    train_model.main({**spec, "seed": 4}, dataset.folder / MANIFEST, tmp_path / "out")
    capfd.readouterr()
    train_model.main(spec, dataset.folder / MANIFEST, tmp_path / "out")
    assert "of other settings, inputs or code; discarded" in capfd.readouterr().err
    monkeypatch.undo()
    train_model.main(spec, dataset.folder / MANIFEST, tmp_path / "clean")
    assert Artifact.open(tmp_path / "out" / MANIFEST).hash == Artifact.open(tmp_path / "clean" / MANIFEST).hash
