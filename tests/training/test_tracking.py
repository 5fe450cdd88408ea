"""Curves in TensorBoard and, offline, in Weights & Biases: what was logged can be read back."""

import json
import time

import pytest

from pipeline.artifacts.errors import UserError
from pipeline.training import tracking
from pipeline.training.tracking import tracker

ROWS = [({"step": 10, "train_loss": 2.5}, {"step": 10, "seconds": 1.0}), ({"step": 20, "train_loss": 1.5}, {"step": 20, "seconds": 2.0})]


def log(monkeypatch, folder, first=True, **wanted):
    monkeypatch.setenv("SAEFLOW_TRACKING", json.dumps({"folder": str(folder), "project": "test", **wanted}))
    with tracker("gpt", {"seed": 0}, first) as shown:
        for row in ROWS if shown else ():
            shown.log(*row)
        return shown


def test_it_is_off_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("SAEFLOW_TRACKING", raising=False)
    with tracker("gpt", {}) as shown:
        assert shown is None
    assert log(monkeypatch, tmp_path, tensorboard=False, wandb="off") is None
    assert log(monkeypatch, tmp_path, first=False, tensorboard=True) is None
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_holds_every_number(monkeypatch, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(monkeypatch, tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "gpt" / "tensorboard"))
    events.Reload()
    assert {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "train_loss": [(10, 2.5), (20, 1.5)],
        "seconds": [(10, 1.0), (20, 2.0)],
    }


@pytest.mark.slow
def test_wandb_offline_leaves_each_run_to_sync(monkeypatch, tmp_path):
    """Also of two that go on at one time, as variants that are trained together."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAEFLOW_TRACKING", json.dumps({"folder": str(tmp_path), "project": "test", "wandb": "offline"}))
    with tracker("one", {"seed": 0}) as one, tracker("two", {"seed": 1}) as two:
        for row in ROWS:
            one.log(*row)
            two.log({"step": row[0]["step"], "other_loss": 7.5}, row[1])
    for name, logged, foreign in (("one", b"train_loss", b"other_loss"), ("two", b"other_loss", b"train_loss")):
        (file,) = (tmp_path / name).rglob("*.wandb")
        ends = time.monotonic() + 120
        while logged not in (content := file.read_bytes()) and time.monotonic() < ends:
            time.sleep(0.05)  # wandb's own process may still be writing it
        assert logged in content
        assert foreign not in content


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed; `pip install 'saeflow\[tracking\]'`"):
        log(monkeypatch, tmp_path, wandb="offline")
