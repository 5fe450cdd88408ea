"""Harvesting: every row once, in order; the bytes are a function of the model, the split and the spec."""

import hashlib
import json

import numpy as np
import pytest
import torch

from pipeline.activations.harvest import harvest
from pipeline.activations.seal import seal
from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST
from pipeline.models import checkpoint
from pipeline.models.examples import examples

HOOKS = ["blocks.0.mlp_hidden", "blocks.1.resid_post"]
IDENTITY = {"model": "m", "dataset": "d", "split": "train", "meanings": {hook: f"what {hook} is" for hook in HOOKS}}
SPEC = {"hooks": HOOKS, "batch": 2, "rows": None, "chunk_rows": 4, "shard_rows": 8}


@pytest.fixture
def text(make_tokens):
    """61 positions in windows of 8: seven and a short one."""
    return examples(make_tokens(np.random.default_rng(0).integers(0, 11, 62), 11), "train", 8)


@pytest.fixture
def model():
    found, _ = checkpoint.build({"architecture": "gpt", "layers": 2, "width": 8, "heads": 2, "context": 8}, {"vocabulary": 11})
    return found.eval()


def digests(folder) -> dict[str, str]:
    """Every file but run.json."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.fixture
def make(tmp_path, model, text):
    """A sealed store of the model over the text."""

    def make(name: str = "store", split=text, **settings) -> ActivationStore:
        spec = {**SPEC, **settings}
        (tmp_path / name).mkdir(exist_ok=True)
        harvest(model, split, spec, tmp_path / name, IDENTITY)
        seal(tmp_path / name, spec, {})
        return ActivationStore(tmp_path / name / MANIFEST)

    return make


def expected(model, text) -> dict[str, np.ndarray]:
    """The hooks' values, window by window, with a plain forward."""
    found = {hook: [] for hook in HOOKS}
    for start in range(0, 61, 8):
        window = torch.from_numpy(text.ids[None, start : min(start + 8, 61)].astype(np.int64))
        with torch.no_grad():
            model(window, lambda name, value: found[name].append(value[0].numpy()) or value if name in found else value)
    return {hook: np.concatenate(values) for hook, values in found.items()}


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_every_position_is_recorded_in_order(make, model, text, batch):
    store = make(batch=batch)
    for hook, values in expected(model, text).items():
        np.testing.assert_allclose(store[hook].read(0, 61), values, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(store.mean(hook), values.mean(0, dtype=np.float64), rtol=1e-4, atol=1e-6)
        assert store.variance(hook) == pytest.approx(values.var(0, dtype=np.float64).sum(), rel=1e-4)
    assert np.array_equal(store["token"].read(0, 61), text.ids[:61])
    assert store["sequence"].read(0, 61).tolist() == [i // 8 for i in range(61)]
    assert store["position"].read(0, 61).tolist() == [i % 8 for i in range(61)]


def test_equal_specs_give_equal_bytes_whatever_was_there_before(make):
    torch.manual_seed(0)
    first = digests(make("a").artifact.folder)
    make("b", rows=20, hooks=HOOKS[:1], shard_rows=4)
    torch.manual_seed(99)
    assert digests(make("b").artifact.folder) == first


def test_the_size_of_shards_and_chunks_is_not_in_the_numbers(make):
    a, b = make("a"), make("b", chunk_rows=16, shard_rows=64)
    assert np.array_equal(a[HOOKS[0]].read(0, 61), b[HOOKS[0]].read(0, 61))
    np.testing.assert_allclose(a.mean(HOOKS[0]), b.mean(HOOKS[0]), rtol=1e-12)


@pytest.mark.parametrize("rows", [1, 8, 9, 24, 60, 61, 1000])
def test_a_limit_of_rows_is_kept(make, rows):
    whole, some = make("whole"), make("some", rows=rows)
    kept = min(rows, 61)
    assert len(some) == kept
    for name in (*HOOKS, "token", "sequence", "position"):
        assert np.array_equal(some[name].read(0, kept), whole[name].read(0, kept))
    np.testing.assert_allclose(some.mean(HOOKS[0]), whole[HOOKS[0]].read(0, kept).astype(np.float64).mean(0), rtol=1e-12)
    assert not [name for name in some.artifact.files if f"/c/{-(-kept // 8)}" in name], "no shard after the last row"


def test_nothing_after_the_limit_is_computed(model, text, tmp_path, monkeypatch):
    seen = []
    batches = text.batches
    monkeypatch.setattr(type(text), "batches", lambda self, size: (seen.append(batch) or batch for batch in batches(size)))
    harvest(model, text, {**SPEC, "rows": 17, "batch": 1}, tmp_path, IDENTITY)
    assert len(seen) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_told_where_it_is(make_store, value):
    rows = np.ones((40, 3))
    rows[[33, 37], 1] = value
    with pytest.raises(UserError, match="hook x is not finite at sequence 6, position 3"):
        make_store(rows, length=5)


def test_the_old_manifest_is_gone_before_the_first_byte(make, model):
    store = make()
    with torch.no_grad():
        model.position.weight[5] = float("nan")
    with pytest.raises(UserError):
        make()
    assert not (store.artifact.folder / MANIFEST).exists()


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_shard_that_breaks_before_sealing_is_never_sealed(make, model, text, tmp_path, damage):
    harvest(model, text, SPEC, tmp_path, IDENTITY)
    path = tmp_path / f"store.zarr/{HOOKS[1]}/c/3/0"
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(DamagedArtifact, match=r"rows 24-31 of blocks\.1\.resid_post"):
        seal(tmp_path, SPEC, {})
    assert not (tmp_path / MANIFEST).exists()


def test_the_store_says_whose_it_is_and_the_manifest_what_it_holds(make):
    store = make()
    assert {key: store.attributes[key] for key in ("model", "dataset", "split")} == {"model": "m", "dataset": "d", "split": "train"}
    assert store.attributes["hooks"][HOOKS[1]]["about"] == "what blocks.1.resid_post is"
    assert store.artifact.facts["rows"] == 61
    assert store.artifact.facts["hooks"] == {HOOKS[0]: 32, HOOKS[1]: 8}
    on_disk = {name for name in digests(store.artifact.folder) if name.startswith("store.zarr/")}
    assert set(store.artifact.files) == on_disk, "every file of the store, and nothing else, is in the manifest"
    for name in store.artifact.files:
        store.artifact.file(name)
    assert json.loads((store.artifact.folder / "harvest.json").read_text())["rows"] == 61
