"""Two processes that share each batch end in the weights of one."""

import os
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.artifacts.manifest import MANIFEST
from pipeline.steps import train_model
from tests.models.test_resume import command, killed_at

GPT = {
    "architecture": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 8, "threads": 1,
    "training": {
        "steps": 40, "batch": 8, "lr": 0.01, "validate_every": 10, "precision": "float64", "schedule": {"shape": "plateau", "patience": 0},
    },
}  # fmt: skip


def trained(dataset, out, **training) -> dict[str, torch.Tensor]:
    """The weights of a run of one process, which is this one, or of several."""
    spec = {**GPT, "training": {**GPT["training"], **training}}
    if "processes" not in training:
        train_model.main(spec, dataset.folder / MANIFEST, out)
        return load_file(out / "model.safetensors")
    done = subprocess.run(command(spec, dataset, out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "model.safetensors")


@pytest.fixture
def dataset(make_tokens):
    ids = np.random.default_rng(0).integers(0, 12, size=1000)
    return make_tokens(ids[:900], 12, validation=ids[900:])


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(dataset, tmp_path):
    one = trained(dataset, tmp_path / "one")
    two = trained(dataset, tmp_path / "two", processes=2)
    parts = trained(dataset, tmp_path / "parts", processes=2, accumulate=2)
    assert one["token.weight"].dtype == torch.float64
    for other in (two, parts):
        assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-9
    assert any(not torch.equal(one[name], two[name]) for name in one), "the second run was not shared at all"


@pytest.mark.slow
def test_two_processes_with_dropout_go_on_after_a_kill(dataset, tmp_path):
    """Each has its own random state, and the snapshot holds both."""
    spec = {**GPT, "dropout": 0.2, "training": {**GPT["training"], "processes": 2}}
    environment = {**os.environ, "SAEFLOW_SNAPSHOT_SECONDS": "0"}
    run = subprocess.Popen(command(spec, dataset, tmp_path / "killed"), env=environment, stderr=subprocess.DEVNULL)
    killed_at(9, tmp_path / "killed", run)
    for folder in ("killed", "whole"):
        done = subprocess.run(command(spec, dataset, tmp_path / folder), capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "discarded" not in done.stderr
    assert (tmp_path / "killed" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()
