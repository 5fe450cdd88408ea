"""The step that trains: the files it leaves, weights of stated steps, transcoders."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.saes import checkpoint, verdicts
from pipeline.saes.run import Run
from pipeline.saes.train import Source, begun, train
from pipeline.steps import train_sae, train_saes
from pipeline.study.kinds import kinds
from pipeline.training import snapshot
from tests.saes.runs import TRAINING, made, rows
from tests.stores import harvested


def spec(architecture: str = "topk", hook: str = "x", **more) -> dict:
    given = {"architecture": architecture, "activations": "a", "latents": 24, **more, "training": {**TRAINING, **more.get("training", {})}}
    given |= {"hooks": [hook]} if "outputs" in more else {}
    given |= {"k": more.get("k", 3)} if "k" in kinds("saes")[architecture].model_fields else {}
    settings = kinds("saes")[architecture].model_validate(given).settings()
    output = {"output": more["outputs"][0]} if "outputs" in more else {}
    return {**settings, "hook": hook, **output, "metadata": {"model_name": "m"}}


def trained(out, store, validation=None, **more) -> Artifact:
    others = [validation.artifact.folder / MANIFEST] if validation else []
    train_sae.main(spec(**more), store.artifact.folder / MANIFEST, others, out)
    return Artifact.open(out / MANIFEST)


ALWAYS = {"sae_weights.safetensors", "cfg.json", "sparsity.safetensors", "probe.safetensors", "training.parquet"}


def test_it_leaves_weights_and_curve(store, validation, tmp_path):
    made = trained(tmp_path / "sae", store, validation, training={"points": 8, "keep": "best", "stop_after": None})
    curve = pq.read_table(made.file("training.parquet")).to_pylist()
    assert [row["step"] for row in curve] == list(range(10, 90, 10))
    assert made.manifest["inputs"] == {"activations": store.artifact.hash, "validation": validation.artifact.hash}
    assert ALWAYS <= set(made.files) <= ALWAYS | {"last.safetensors"}
    kept = next(row for row in curve if row["step"] == made.facts["kept_step"])
    assert made.facts["validation_fve"] == kept["validation_fve"] == max(row["validation_fve"] for row in curve)
    found = Source(store, "x", "x", validation).held_out(2**13).measure(checkpoint.load(made))
    assert found["validation_fve"] == kept["validation_fve"]
    assert not (tmp_path / "sae/.resume").exists()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_best_and_last_weights_stand_beside_each_other(store, validation, tmp_path, keep):
    training = {"lr": 0.3, "schedule": {"shape": "constant"}, "keep": keep, "epochs": 14}
    made = trained(tmp_path / "sae", store, validation, training=training)
    other = {"last": "best", "best": "last"}[keep]
    assert set(made.files) == ALWAYS | {f"{other}.safetensors"}
    held_out = Source(store, "x", "x", validation).held_out(2**13)
    curve = pq.read_table(made.file("training.parquet")).to_pylist()
    expected = {"last": curve[-1]["validation_fve"], "best": max(row["validation_fve"] for row in curve)}
    sae = checkpoint.load(made)
    assert held_out.measure(sae)["validation_fve"] == expected[keep]
    sae.load_state_dict(load_file(made.file(f"{other}.safetensors")))
    assert held_out.measure(sae)["validation_fve"] == expected[other]


def test_without_a_validation_split_the_curve_is_of_the_rows_trained_on(store, tmp_path):
    made = trained(tmp_path / "sae", store)
    assert set(made.manifest["inputs"]) == {"activations"}
    assert not any(name.startswith("validation_") for name in [*made.facts, *pq.read_table(made.file("training.parquet")).column_names])


def test_weights_of_stated_steps_are_those_of_a_run_that_stood_there(store, tmp_path):
    """In units of the activations, as the weights that are kept."""
    units = {"centre": True, "scale": "norm"}
    artifact = trained(tmp_path / "sae", store, normalise=units, training={"snapshots": [7, 80]})
    then, last, weights = (
        load_file(artifact.file(name)) for name in ("snapshots/step_7.safetensors", "snapshots/step_80.safetensors", checkpoint.WEIGHTS)
    )
    assert all(torch.equal(last[name], weights[name]) for name in weights)
    found, _, batches = made(store, architecture="topk", normalise=units, k=3)
    for batch in itertools.islice(batches.batches(), 7):
        found.step(batch["x"], batch["x"])
    assert all(torch.equal(then[name], value) for name, value in found.folded().state_dict().items())
    assert not torch.equal(then["W_dec"], weights["W_dec"])


def test_a_snapshot_after_the_last_step_is_told(store, tmp_path):
    with pytest.raises(UserError, match=r"training\.snapshots: 81 is after the last step, 80"):
        trained(tmp_path / "sae", store, training={"snapshots": [81]})


class Killed(Exception):
    """Instead of a signal, which would end the tests."""


def interrupted(monkeypatch, out, store, at: int, **more) -> None:
    """A run that ends after a step, with a snapshot of it."""
    monkeypatch.setenv("SAEFLOW_SNAPSHOT_SECONDS", "0")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        step = Run.step

        def killed(run, *batch):
            if run.at.step == at:
                raise Killed
            return step(run, *batch)

        patched.setattr(Run, "step", killed)
        trained(out, store, **more)


def test_weights_of_a_stated_step_that_are_lost_begin_the_run_anew(store, tmp_path, monkeypatch, capsys):
    more = {"training": {"snapshots": [7, 70]}}
    whole = trained(tmp_path / "whole", store, **more)
    interrupted(monkeypatch, tmp_path / "sae", store, 20, **more)
    (tmp_path / "sae/.resume/sae/step_7.safetensors").unlink()
    found = trained(tmp_path / "sae", store, **more)
    assert "step_7.safetensors: the weights of a stated step are missing; the run starts at its beginning" in capsys.readouterr().err
    assert found.hash == whole.hash
    interrupted(monkeypatch, tmp_path / "sae", store, 20, **more)
    assert trained(tmp_path / "sae", store, **more).hash == whole.hash
    assert "missing" not in capsys.readouterr().err


def test_weights_of_a_stated_step_that_are_lost_in_the_end_are_told(store, tmp_path, monkeypatch):
    train = train_sae.train

    def loses(*given):
        train(*given)
        (tmp_path / "sae/.resume/sae/step_7.safetensors").unlink()

    monkeypatch.setattr(train_sae, "train", loses)
    with pytest.raises(UserError, match=r"step_7\.safetensors: the weights of a stated step are missing; run this again"):
        trained(tmp_path / "sae", store, training={"snapshots": [7]})
    assert not (tmp_path / "sae" / MANIFEST).exists()


def test_weights_of_a_stated_step_are_on_disk_before_they_are_in_place(store, tmp_path, monkeypatch):
    def full(_):
        raise OSError("no space")

    monkeypatch.setattr(snapshot.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        trained(tmp_path / "sae", store, training={"snapshots": [7]})
    assert not (tmp_path / "sae/.resume/sae/step_7.safetensors").exists()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_run_that_diverges_keeps_no_weights_twice(store, validation, tmp_path, monkeypatch, keep):
    """Its last good weights are its best. Nor does a stated step after them leave any."""
    monkeypatch.setattr(verdicts, "fault", lambda curve, last, sae: "the loss is nan" if curve[-1]["step"] == 11 else None)
    training = {"points": 80, "keep": keep, "snapshots": [10, 11], "lr": 0.001}
    made = trained(tmp_path / "sae", store, validation, training=training)
    assert made.facts["kept_step"] == 10
    assert set(made.files) == ALWAYS | {"snapshots/step_10.safetensors"}


class Two(nn.Module):
    """A model whose hook `y` is a map of its hook `x`."""

    def __init__(self, bend: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight, self.bend = torch.randn(8, 5, generator=generator), bend

    def forward(self, inputs, tap):
        y = tap("x", inputs) @ self.weight
        return tap("y", (y.relu() if self.bend else y) + 4)


@pytest.fixture
def two(tmp_path, make_table):
    def two(bend: bool):
        table = make_table(rows().astype(np.float32), name=f"rows-{bend}")
        return harvested(tmp_path / f"two-{bend}", Two(bend), table, hooks=["x", "y"], chunk_rows=50, shard_rows=100)

    return two


@pytest.mark.parametrize("normalise", [{}, {"centre": True, "scale": "norm"}], ids=str)
@pytest.mark.parametrize("architecture", kinds("saes"))
def test_a_transcoder_learns_the_map_from_its_hook_to_its_output(two, tmp_path, architecture, normalise):
    store = two(True)
    more = {"k": 6} if "k" in kinds("saes")[architecture].model_fields else {}
    made = trained(tmp_path / "sae", store, store, architecture=architecture, outputs=["y"], normalise=normalise, **more,
                   training={"epochs": 40})  # fmt: skip
    sae = checkpoint.load(made)
    x, y = (torch.from_numpy(store[hook].read(0, 300)) for hook in ("x", "y"))
    fve = 1 - ((sae(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()
    assert fve == pytest.approx(made.facts["validation_fve"], abs=1e-4)
    assert fve > 0.6
    assert made.facts["out"] == 5


@pytest.mark.parametrize("architecture", kinds("saes"))
def test_a_transcoder_with_its_defaults_withstands_a_large_mean(tmp_path, make_table, architecture):
    """Of hooks whose squared mean is twenty-five times their variance or more."""
    x = rows(600)
    x = x - x.mean(0)
    table = make_table((x + 5 * (x.var(0).sum() / 8) ** 0.5).astype(np.float32))
    store = harvested(tmp_path / "far", Two(True), table, hooks=["x", "y"], chunk_rows=50, shard_rows=100)
    more = {"k": 6} if "k" in kinds("saes")[architecture].model_fields else {}
    made = trained(tmp_path / "sae", store, store, architecture=architecture, outputs=["y"], **more, training={"epochs": 30})
    assert made.facts["validation_fve"] > 0.6
    assert made.facts["validation_dead"] < 0.4 or architecture == "jumprelu", "its penalty takes those that explain little"
    assert made.facts["validation_l0"] > 0.5


def test_a_skip_transcoder_finds_a_linear_map(two, tmp_path):
    """With a single latent: all that is left to the skip map."""
    store = two(False)
    training = {"epochs": 100, "lr": 0.03, "when_wrong": "warn"}
    fve = {}
    for skip in (True, False):
        made = trained(tmp_path / str(skip), store, store, outputs=["y"], skip=skip, latents=1, k=1,
                       normalise={"centre": True, "scale": "norm"}, training=training)  # fmt: skip
        fve[skip] = made.facts["validation_fve"]
    assert fve[True] > 0.99
    assert fve[False] < 0.7


def together(out, store, validation, **specs) -> None:
    manifests = [one.artifact.folder / MANIFEST for one in (store, validation)]
    train_saes.main(specs, manifests[0], manifests[1:], out)


def test_variants_together_leave_what_each_leaves_alone(store, validation, tmp_path):
    specs = {f"k={k}": spec(k=k, training={"snapshots": [5]}) for k in (2, 3)}
    stale = tmp_path / "together/k=3/.resume/run.safetensors"  # of when it was trained alone
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    together(tmp_path / "together", store, validation, **specs)
    assert not list(tmp_path.rglob(".resume"))
    manifests = [one.artifact.folder / MANIFEST for one in (store, validation)]
    for name, one in specs.items():
        train_sae.main(one, manifests[0], manifests[1:], tmp_path / "alone" / name)
        assert (tmp_path / "together" / name / MANIFEST).read_bytes() == (tmp_path / "alone" / name / MANIFEST).read_bytes()


def test_messages_name_the_variant_where_there_are_several(store, validation, tmp_path, capsys):
    training = {"dead_share": 0.1, "resample": [0.5], "lr": 1e-9, "when_unmoved": "warn"}
    still = spec("relu", l1=0.5, training=training)
    together(tmp_path, store, validation, still=still, other=spec(training={"dead_share": 0.25}))
    told = capsys.readouterr().err.splitlines()
    assert "still: a latent is dead when it has not fired in 240 rows, 10% of the run" in told
    assert "other: a latent is dead when it has not fired in 600 rows, 25% of the run" in told
    assert [line for line in told if line.startswith("still: step 40: ") and "dead latents were given new directions" in line]
    assert [line for line in told if line.startswith("warning: still: L0 did not fall")]
    assert Artifact.open(tmp_path / "still" / MANIFEST).facts["wrong"].startswith("L0 did not fall")
    late, breaks, unmoved = ({"snapshots": [81]}, {"lr": 1e30, "when_wrong": "stop"}, {**training, "when_unmoved": "stop"})
    for wrong, line in ((late, r"training\.snapshots: 81"), (breaks, "training diverged"), (unmoved, "L0 did not fall")):
        with pytest.raises(UserError, match=f"^still: {line}"):
            together(tmp_path, store, validation, still=spec("relu", l1=0.5, training=wrong), other=spec())


def test_the_store_is_read_once_for_all_variants(store, monkeypatch):
    """Each of its chunks, by the loader that they share, once the few rows are known by which encoders are scaled."""
    from pipeline.activations.chunks import Chunks

    spec = {"architecture": "topk", "k": 3}
    found, source, batches = made(store, **spec)
    other = begun(*checkpoint.build({"latents": 12, "training": TRAINING, "hook": "x", **spec}, 8), source, batches)
    read, mapped, counted = Chunks.read_into, Chunks.map_into, []
    monkeypatch.setattr(Chunks, "read_into", lambda self, chunk, *rest: (counted.append(chunk), read(self, chunk, *rest))[1])
    monkeypatch.setattr(Chunks, "map_into", lambda self, chunks, *rest: (counted.extend(chunks), mapped(self, chunks, *rest))[1])
    train({"one": found, "two": other}, source, batches)
    assert sorted(counted) == list(range(6))
