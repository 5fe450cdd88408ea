"""Processes that share each batch end in the weights of one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from pipeline.artifacts.manifest import MANIFEST
from pipeline.saes import checkpoint, units
from pipeline.saes.held_out import HeldOut
from pipeline.saes.run import Data, Run
from pipeline.steps import train_sae
from pipeline.study.kinds import kinds
from pipeline.training.processes import Group
from tests.fresh import fresh
from tests.saes.runs import TRAINING, rows

STEPS = 30


def spec(architecture: str, **more) -> dict:
    given = {"architecture": architecture, "activations": "a", "latents": 24, "threads": 1, **({"normalise": {"scale": "norm"}}), **more}
    given |= {"k": 3} if "k" in kinds("saes")[architecture].model_fields else {"target_l0": 3} if architecture == "jumprelu" else {}
    settings = kinds("saes")[architecture].model_validate({**given, "training": {**TRAINING, **more.get("training", {})}}).settings()
    return {**settings, "hook": "x", "metadata": {"model_name": "m"}}


RESAMPLED = {"resample": [0.5], "dead_share": 0.1, "points": 5}
MEASURED = {
    **RESAMPLED, "points": 30, "clip": 0.05, "lr": 0.2, "schedule": {"shape": "plateau", "warmup": 5, "patience": 1}, "stop_after": 4,
}  # fmt: skip
"""What the first process decides alone, by held-out rows, and clipping by the norm of the whole gradient."""


def shared(architecture: str, training: dict, rank: int, size: int, folder: Path) -> None:
    """A run in float64, in this process of `size`; it leaves its weights and where it stood."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / f'meeting-{size}'}", rank=rank, world_size=size)
    sae, settings = checkpoint.build(spec(architecture, training=training), 8)
    x = torch.from_numpy(rows())
    plain, width = units.Units(torch.zeros(8, dtype=torch.float64)), x.mean(0)
    data = Data(plain, plain, (x - width).square().sum(1).mean().item(), width, STEPS * 31, STEPS)
    held_out = HeldOut(*2 * [torch.from_numpy(rows(100, seed=1))]) if rank == 0 and "stop_after" in training else None
    run = Run(sae.double(), settings, data, Group(rank, size), held_out, lambda: (x, x))
    with torch.no_grad():
        for name in sae._BIASES:
            sae.get_parameter(name)[16:] = -100.0  # dead, to be resampled
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = x[torch.randperm(len(x), generator=generator)[:31]]  # which two cannot share evenly
        run.step(batch, batch)
        if run.at.ended:
            break
    assert run.at.resampled, "nothing was resampled"
    save_file({name: value.contiguous() for name, value in sae.state_dict().items()}, folder / f"{size}-{rank}.safetensors")
    (folder / f"{size}-{rank}.json").write_text(json.dumps([run.at.step, run.optimizer.lr, run.at.curve]))


@pytest.mark.parametrize(("architecture", "training"), [*((name, RESAMPLED) for name in kinds("saes")), ("topk", MEASURED)])
def test_two_processes_give_the_weights_of_one(architecture, training, tmp_path):
    started = [fresh.Process(target=shared, args=(architecture, training, rank, size, tmp_path)) for size in (1, 2) for rank in range(size)]
    for one in started:
        one.start()
    for one in started:
        one.join(600)
    assert [one.exitcode for one in started] == [0, 0, 0]
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert alone["W_dec"].dtype == torch.float64
    assert max((alone[name] - first[name]).abs().max().item() for name in alone) < 1e-9
    assert all(torch.equal(first[name], second[name]) for name in first), "both have the same weights"
    assert any(not torch.equal(alone[name], first[name]) for name in alone), "the second run was not shared at all"
    ends = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")]
    assert ends[0][:2] == ends[1][:2] == ends[2][:2], "the same step and learning rate in the end"
    for one, two in zip(ends[0][2], ends[1][2], strict=True):
        assert one == pytest.approx(two, rel=1e-7)
    if training is MEASURED:
        assert STEPS / 2 < ends[0][0] < STEPS, "it stopped before its last step"
        assert ends[0][1] < training["lr"], "the learning rate was lowered"


def command(settings: dict, store, validation, out: Path) -> list[str]:
    given = ["--store", store.artifact.folder / MANIFEST, "--validation", validation.artifact.folder / MANIFEST, "--out", out]
    return [sys.executable, "-m", "pipeline.steps.train_sae", "--spec", json.dumps(settings), *map(str, given)]


@pytest.mark.slow
def test_processes_that_torchrun_starts_give_the_weights_of_one_and_go_on_after_a_kill(store, validation, tmp_path):
    environment = {**os.environ, "SAEFLOW_SNAPSHOT_SECONDS": "0"}
    settings = [spec("topk", training={"processes": count, "epochs": 20}) for count in (1, 2)]
    inputs = store.artifact.folder / MANIFEST, [validation.artifact.folder / MANIFEST]
    train_sae.main(settings[0], *inputs, tmp_path / "1")
    done = subprocess.run(command(settings[1], store, validation, tmp_path / "2"), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {count: load_file(tmp_path / count / "sae_weights.safetensors") for count in ("1", "2")}
    for name, value in found["1"].items():
        np.testing.assert_allclose(found["2"][name], value, atol=1e-5)
    with subprocess.Popen(command(settings[1], store, validation, tmp_path / "killed"), env=environment, stderr=subprocess.PIPE) as killed:
        snapshot = tmp_path / "killed/.resume/run.safetensors"
        while not snapshot.is_file() and killed.poll() is None:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    time.sleep(0.5)  # its processes end with it
    done = subprocess.run(
        command(settings[1], store, validation, tmp_path / "killed"),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "discarded" not in done.stderr
    assert (tmp_path / "killed" / MANIFEST).read_bytes() == (tmp_path / "2" / MANIFEST).read_bytes()
