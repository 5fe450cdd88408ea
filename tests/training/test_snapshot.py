"""Snapshots: whole or not at all, of this run or of none, and not so often that they cost."""

import contextlib

import torch

from pipeline.training import snapshot
from pipeline.training.snapshot import Snapshots, named, random_state, set_random_state, under


def test_what_was_saved_is_loaded(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3, dtype=torch.int64)}
    Snapshots(tmp_path, "x").save(tensors, {"step": 3, "loss": 0.1})
    found, values = Snapshots(tmp_path, "x").load()
    assert {name: value.tolist() for name, value in found.items()} == {name: value.tolist() for name, value in tensors.items()}
    assert values == {"step": 3, "loss": 0.1}


def test_there_is_none_at_first_and_none_after_the_end(tmp_path):
    snapshots = Snapshots(tmp_path, "x")
    assert snapshots.load() is None
    snapshots.save({"a": torch.zeros(1)}, {})
    snapshots.remove()
    assert snapshots.load() is None
    assert list(tmp_path.iterdir()) == []
    snapshots.remove()


def test_that_of_another_run_is_not_taken(tmp_path, capfd):
    Snapshots(tmp_path, "x").save({"a": torch.zeros(1)}, {})
    assert Snapshots(tmp_path, "y").load() is None
    assert "discarded" in capfd.readouterr().err


def test_a_kill_while_it_is_written_leaves_the_last_one(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, "x")
    snapshots.save({"a": torch.ones(1)}, {"step": 1})
    monkeypatch.setattr(snapshot.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with contextlib.suppress(KeyboardInterrupt):
        snapshots.save({"a": torch.zeros(1)}, {"step": 2})
    assert snapshots.load()[1] == {"step": 1}


def test_they_take_at_most_their_share_of_the_time(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(snapshot.time, "monotonic", lambda: clock[0])
    monkeypatch.delenv("SAEFLOW_SNAPSHOT_SECONDS", raising=False)
    snapshots = Snapshots(tmp_path, "x")
    assert not snapshots.due()
    clock[0] += snapshot.SECONDS
    assert snapshots.due()
    monkeypatch.setattr(snapshot.os, "fsync", lambda _: clock.__setitem__(0, clock[0] + 2.0))
    snapshots.save({"a": torch.zeros(1)}, {})
    clock[0] += 2.0 / snapshot.SHARE - 0.1
    assert not snapshots.due()
    clock[0] += 0.2
    assert snapshots.due()


def test_a_damaged_one_is_discarded(tmp_path, capfd):
    snapshots = Snapshots(tmp_path, "x")
    snapshots.save({"a": torch.zeros(3)}, {})
    snapshots.file.write_bytes(snapshots.file.read_bytes()[:-2])
    assert snapshots.load() is None
    assert "not readable" in capfd.readouterr().err


def test_random_draws_go_on_where_they_were():
    torch.manual_seed(5)
    state = {name: value.clone() for name, value in random_state().items()}
    first = torch.rand(4)
    set_random_state(state)
    assert torch.equal(torch.rand(4), first)


def test_prefixes():
    tensors = {"a": torch.zeros(1), "b.c": torch.ones(1)}
    assert under("x.", named("x.", tensors) | {"y.a": torch.ones(2)}) == tensors
