"""Harvesting: every row once, in order; the bytes are a function of the model, the split and the spec; what is wrong stops it."""

import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from harvests import HOOKS, SPEC, digests, gpt, ids
from torch import nn

import pipeline.activations.filling
import pipeline.activations.harvest
from pipeline.activations.layout import Layout
from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST
from pipeline.models.examples import TokenExamples, examples
from tests.stores import harvest_job, harvested, sealed

TASKS = Path("/proc/self/task")


@pytest.fixture
def dataset(make_tokens):
    """61 positions in windows of 8: seven and a short one."""
    return make_tokens(ids(), 11)


@pytest.fixture
def text(dataset):
    return examples(dataset, "train", 8)


@pytest.fixture
def model():
    return gpt()


@pytest.fixture
def make(tmp_path, model, dataset):
    """A published store of the model over the text."""

    def make(name: str = "store", of=model, digest: str = "of this study", **settings) -> ActivationStore:
        spec = {**SPEC, **settings}
        part = harvest_job(tmp_path / name, of, dataset, 8, digest=digest, **spec)
        return sealed(tmp_path / name, [part], dataset, 8, **spec)

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
    make("b", rows=20, hooks=HOOKS[:1], covariance=HOOKS[:1], sparse=HOOKS[:1], shard_rows=4, digest="another")
    torch.manual_seed(99)
    assert digests(make("b").artifact.folder) == first


def test_what_an_earlier_covariance_left_is_no_part_of_the_store(make):
    first = digests(make("a").artifact.folder)
    assert digests(make("b", covariance=HOOKS, digest="another").artifact.folder) != first
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


class Counting(nn.Module):
    """A model that counts the batches that go through it, the sample first."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of, self.seen = of, 0

    def forward(self, inputs, tap):
        self.seen += 1
        return self.of(inputs, tap)


def test_nothing_after_the_limit_is_computed(make, model):
    counting = Counting(model)
    make(of=counting, rows=17, batch=1)
    assert counting.seen == 1 + 3


def test_a_batch_without_a_row_is_not_computed(tmp_path, model, make_tokens):
    tokens = ids()
    tokens[16:32] = 0
    counting = Counting(model)
    store = harvested(tmp_path / "store", counting, make_tokens(tokens, 11, special=[0]), 8, **SPEC)
    assert counting.seen == 1 + 4
    assert 2 not in store["sequence"].read(0, len(store))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_told_where_it_is(make_store, tmp_path, value):
    rows = np.ones((40, 3))
    rows[[33, 37], 1] = value
    with pytest.raises(UserError) as caught:
        make_store(rows, length=5)
    assert str(caught.value) == "hook x: a number is not finite, at sequence 6, position 3"
    assert not (tmp_path / "store" / MANIFEST).exists()
    assert sorted(path.stem for path in (tmp_path / "store/sums").iterdir()) == ["000000", "000001", "000002", "000003"]


@pytest.mark.parametrize(("dtype", "value", "most"), [("float16", 65520.0, "65,504"), ("bfloat16", 3.4e38, "3.4e38")])
def test_a_number_that_does_not_fit_its_type_is_told_where_it_is(make_store, dtype, value, most):
    rows = np.ones((40, 3))
    rows[33, 1] = value
    with pytest.raises(UserError) as caught:
        make_store(rows, length=5, dtype=dtype)
    assert str(caught.value) == f"hook x: a number is not finite, or does not fit {dtype} (at most {most}), at sequence 6, position 3"
    rows[33, 1] = value * 0.99
    assert make_store(rows, length=5, dtype=dtype)["x"].read(33, 34)[0, 1] == pytest.approx(value * 0.99, rel=1e-2)


def test_a_value_that_is_not_finite_beyond_the_last_row_is_no_part_of_the_store(make_store):
    rows = np.ones((40, 3))
    rows[35:, 1] = np.nan
    store = make_store(rows, length=5, rows=20, batch=100)
    assert store.attributes["hooks"]["x"]["sinks"]["median"] == 1.732


def test_the_old_manifest_is_gone_before_the_first_byte(make, model):
    store = make()
    with torch.no_grad():
        model.position.weight[5] = float("nan")
    with pytest.raises(UserError):
        make(digest="of the other model")
    assert not (store.artifact.folder / MANIFEST).exists()


@pytest.mark.parametrize("damage", ["deleted", "flipped", "sums deleted", "sums flipped", "sums flipped at the end"])
def test_a_shard_that_breaks_before_sealing_is_never_sealed(dataset, model, tmp_path, damage):
    part = harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    sums = damage.startswith("sums")
    path = tmp_path / "store" / ("sums/000003.safetensors" if sums else f"store.zarr/{HOOKS[1]}/c/3/0")
    if damage.endswith("deleted"):
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1 if damage.endswith("end") else 0] ^= 1
        path.write_bytes(content)
    with pytest.raises(
        DamagedArtifact, match=r"sums/000003\.safetensors \(.*rows 24-31.*\): " if sums else r"rows 24-31 of blocks\.1\.resid_post"
    ) as caught:
        sealed(tmp_path / "store", [part], dataset, 8, **SPEC)
    assert "\n" not in str(caught.value)
    assert "repair: " in str(caught.value)
    assert not (tmp_path / "store" / MANIFEST).exists()


def test_the_store_says_whose_it_is_and_the_manifest_what_it_holds(make, dataset):
    store = make()
    assert {key: store.attributes[key] for key in ("model", "split")} == {"model": "none", "split": "train"}
    assert store.attributes["dataset"] == dataset.hash
    assert store.attributes["hooks"][HOOKS[1]]["about"] == "what blocks.1.resid_post is"
    assert store.artifact.facts == {
        "rows": 61,
        "left_out": 0,
        "hooks": {HOOKS[0]: {"width": 32, "sinks": 0}, HOOKS[1]: {"width": 8, "sinks": 0}},
    }
    assert set(store.artifact.files) == digests(store.artifact.folder).keys() - {MANIFEST}, "every file of the store, and nothing else"
    for name in store.artifact.files:
        store.artifact.file(name)


def test_shards_that_memory_does_not_suffice_for_are_refused_before_the_first_byte(tmp_path, model, make_tokens):
    many = make_tokens(np.zeros(2**14 + 1), 11, "many")
    with pytest.raises(UserError) as caught:
        harvest_job(tmp_path / "store", model, many, 8, hooks=HOOKS, batch=2, memory_mb=1, shard_rows=2**16)
    assert "shards of 65,536 rows" in str(caught.value)
    assert "memory_mb is 1; raise it, or give fewer shard_rows" in str(caught.value)
    assert list((tmp_path / "store").iterdir()) == []


def test_covariances_that_memory_does_not_suffice_for_are_refused(tmp_path, make_tokens, monkeypatch):
    model, rows = gpt(), {**SPEC, "covariance": HOOKS[:1]}
    monkeypatch.setattr(pipeline.activations.harvest, "OUTERS", 1000)  # as if the hook were wide
    with pytest.raises(UserError, match="with covariances of 0 MiB need 8 MiB"):
        harvest_job(tmp_path / "store", model, make_tokens(ids(), 11), 8, memory_mb=1, **rows)


class Shaped(nn.Module):
    """A model whose hook `x` is `make(inputs)`."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, inputs, tap):
        return tap("x", self.make(inputs))


AXES = {
    "heads before positions": lambda ids: torch.ones(len(ids), 2, ids.shape[1], 4),
    "heads after positions": lambda ids: torch.ones(*ids.shape, 2, 4),
    "positions before the batch": lambda ids: torch.ones(*ids.T.shape, 4),
    "one output of a sequence": lambda ids: torch.ones(len(ids), 4),
    "no width": lambda ids: torch.ones(ids.shape),
}


@pytest.mark.parametrize("axes", AXES)
def test_a_hook_whose_rows_nobody_could_tell_apart_is_refused_before_the_first_byte(tmp_path, dataset, axes):
    with pytest.raises(
        UserError, match=r"^hook x: its output is \(.*\), and rows are made of \(batch, position, width\), here \(3, 8, any width\)$"
    ):
        harvest_job(tmp_path / "store", Shaped(AXES[axes]), dataset, 8, batch=3)
    assert list((tmp_path / "store").iterdir()) == []


def test_of_a_table_a_hook_has_one_position(tmp_path, make_table):
    with pytest.raises(
        UserError, match=r"^hook x: its output is \(3, 1, 2\), and rows are made of \(batch, width\), here \(3, any width\)$"
    ):
        harvest_job(tmp_path / "store", Shaped(lambda rows: rows[:, None]), make_table(np.ones((9, 2))), None)


def test_a_batch_that_memory_does_not_suffice_for_is_refused_with_what_to_lower(tmp_path, make_tokens):
    many = make_tokens(np.zeros(2**14 + 1), 11, "many")
    wide = Shaped(lambda ids: torch.ones(*ids.shape, 64))
    spec = {"chunk_rows": 64, "shard_rows": 64, "rows": 128}
    with pytest.raises(UserError) as caught:
        harvest_job(tmp_path / "store", wide, many, 8, batch=256, memory_mb=1, **spec)
    assert str(caught.value) == (
        "batch: what the hooks put out for one batch needs about 2 MiB, shards on their way to the disk 0 MiB, and memory_mb is 1; "
        "lower batch, or raise memory_mb"
    )
    assert list((tmp_path / "store").iterdir()) == []
    harvest_job(tmp_path / "store", wide, many, 8, batch=64, memory_mb=1, **spec)


def test_the_outputs_of_one_batch_are_held_not_of_two(tmp_path, model, dataset):
    alive = []

    class Watched(Counting):
        def forward(self, inputs, tap):
            assert not [one for one in alive if one() is not None], "those of the batch before are still held"

            def see(name, value):
                made = tap(name, value.clone())
                alive.append(weakref.ref(made))
                return made

            return super().forward(inputs, see)

    harvest_job(tmp_path / "store", Watched(model), dataset, 8, **SPEC)
    assert alive


@pytest.mark.parametrize("special", [[], [0]])
def test_rows_are_taken_from_a_batch_piece_by_piece(tmp_path, model, make_tokens, monkeypatch, special):
    dataset, spec = make_tokens(ids(), 11, special=special), {**SPEC, "batch": 5, "sparse": HOOKS[:1]}
    whole = digests(harvested(tmp_path / "whole", model, dataset, 8, **spec).artifact.folder)
    taken = pipeline.activations.filling._taken

    def watched(values, *given):
        for some in taken(values, *given):
            assert some.numel() <= max(100, values.shape[1])
            yield some

    monkeypatch.setattr(pipeline.activations.filling, "TAKEN", 100)
    monkeypatch.setattr(pipeline.activations.filling, "_taken", watched)
    assert digests(harvested(tmp_path / "pieces", model, dataset, 8, **spec).artifact.folder) == whole


def pools() -> set[str]:
    """Threads of executors; zarr keeps some of its own."""
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}


def test_no_thread_outlives_a_harvest(tmp_path, model, dataset, monkeypatch):
    writers = []
    before = pools()
    start = pipeline.activations.harvest.ShardWriter.start
    monkeypatch.setattr(pipeline.activations.harvest.ShardWriter, "start", lambda self: writers.append(self) or start(self))
    harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    assert writers
    assert pools() == before


def test_a_sparse_hook_that_is_not_sparse_stops_before_it_fills_the_memory(tmp_path, make_table):
    class Filled(nn.Module):
        def forward(self, inputs, tap):
            return tap("x", inputs.expand(-1, 2048))

    table = make_table(np.ones((400, 1)))
    spec = {"sparse": ["x"], "batch": 16, "chunk_rows": 400, "shard_rows": 400}
    with pytest.raises(UserError, match=r"sparse: the numbers of x that are not zero need more than the 1 MiB .* or keep the hook dense"):
        harvest_job(tmp_path / "store", Filled(), table, None, memory_mb=1, **spec)
    assert not list((tmp_path / "store").glob("sums/*"))
    harvest_job(tmp_path / "store", Filled(), table, None, memory_mb=64, **spec)


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(tmp_path, model, dataset, monkeypatch):
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=10_000))
    with pytest.raises(UserError) as caught:
        harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    assert "61 rows need about 0.00 GB, and 0.00 GB are free on that disk; make room" in str(caught.value)
    assert list((tmp_path / "store").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=11_000))
    harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)


@pytest.fixture
def free(tmp_path, monkeypatch):
    """Says how many bytes the disk has left."""
    real = shutil.disk_usage(tmp_path)
    return lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=count))


def test_of_another_harvest_only_what_is_replaced_makes_room(tmp_path, model, dataset, free):
    harvest_job(tmp_path / "store", model, dataset, 8, digest="another", **{**SPEC, "rows": 32})
    free(0)
    with pytest.raises(UserError, match="61 rows need about"):
        harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    free(6_000)  # four shards of eight lie there, and all need more than 10,000
    harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)


def test_what_other_jobs_have_written_needs_no_room(tmp_path, model, dataset, free):
    for number in (1, 2):
        harvest_job(tmp_path / "store", model, dataset, 8, number, 4, **SPEC)
    (tmp_path / "store/sums/000005.safetensors").unlink()  # one that another job is writing
    free(6_000)
    harvest_job(tmp_path / "store", model, dataset, 8, 0, 4, **SPEC)
    free(100)
    with pytest.raises(UserError, match="21 rows need about"):
        harvest_job(tmp_path / "store", model, dataset, 8, 3, 4, **SPEC)


@pytest.mark.parametrize(("compression", "needed"), [("none", 10_700), ("zstd", 8_300), ("blosc", 7_900)])
def test_compressed_hooks_are_taken_to_need_less_of_the_disk(tmp_path, model, dataset, free, compression, needed):
    free(needed - 500)
    with pytest.raises(UserError, match="make room"):
        harvest_job(tmp_path / "store", model, dataset, 8, compression=compression, **SPEC)
    free(needed + 500)
    harvest_job(tmp_path / "store", model, dataset, 8, compression=compression, **SPEC)


@pytest.mark.parametrize("cores", [1, 2])
def test_no_more_is_held_than_the_layout_says(tmp_path, model, dataset, monkeypatch, cores):
    monkeypatch.setattr(pipeline.activations.harvest, "_cores", lambda: cores)  # torch has one thread here
    held = []
    filling = pipeline.activations.harvest.Filling
    whole = filling.columns

    def columns(self):
        found = whole(self)
        held.append({hook: found[hook].__array_interface__["data"][0] for hook in HOOKS})
        return found

    monkeypatch.setattr(filling, "columns", columns)
    harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    assert len(held) == 8
    places = {at for one in held for at in one.values()}
    assert len(places) == cores * len(HOOKS), (
        "one shard of each hook fills, and one is written where that is beside; their memory is taken again"
    )
    layout = Layout.of(
        61, {HOOKS[0]: 32, HOOKS[1]: 8}, {**SPEC, "dtype": "float32", "sparse": [], "compression": "none", "sinks_above": None}
    )
    assert layout.held_bytes() >= 2 * 8 * (32 + 8) * 4


def test_a_fault_of_the_model_ends_the_harvest_and_what_was_written_stands(tmp_path, model, dataset):
    class Breaking(Counting):
        def forward(self, inputs, tap):
            if self.seen == 4:
                raise KeyboardInterrupt
            return super().forward(inputs, tap)

    with pytest.raises(KeyboardInterrupt):
        harvest_job(tmp_path / "store", Breaking(model), dataset, 8, **SPEC)
    assert len(list((tmp_path / "store/sums").iterdir())) >= 5
    store = harvested(tmp_path / "store", model, dataset, 8, **SPEC)
    assert digests(store.artifact.folder) == digests(harvested(tmp_path / "whole", model, dataset, 8, **SPEC).artifact.folder)


@pytest.mark.skipif(not TASKS.is_dir(), reason="this system does not list the threads of a process")
def test_the_background_sums_with_the_threads_of_the_spec(tmp_path, model, dataset, monkeypatch):
    """A new thread knows nothing of torch.set_num_threads: products of a covariance would take all cores, and so give other sums."""
    started = []
    writer = pipeline.activations.harvest.ShardWriter
    write = writer.write

    def watched(*given):
        before, some = set(TASKS.iterdir()), torch.randn(400, 400, dtype=torch.float64)
        some @ some
        started.append(len(set(TASKS.iterdir()) - before))  # of what ran before, a thread may end meanwhile
        write(*given)

    monkeypatch.setattr(writer, "write", watched)
    harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    assert started == [0] * 8


def test_progress_counts_rows_as_they_come(tmp_path, model, dataset, monkeypatch):
    told = []

    class Bar:
        def __init__(self, what, total, unit, done) -> None:
            told.append((what, total, unit, done))

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            told.append("end")

        def advance(self, by) -> None:
            told.append(by)

    monkeypatch.setattr(pipeline.activations.harvest, "progress", Bar)
    harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    assert told[0] == ("harvest", 61, "rows", 0)
    assert told[1:-1] == [8] * 7 + [5]
    told.clear()
    (tmp_path / "store/sums/000002.safetensors").unlink()
    harvest_job(tmp_path / "store", model, dataset, 8, **SPEC)
    assert told == [("harvest", 61, "rows", 53), 8, "end"]


def test_rows_past_the_end_of_a_split_are_none(text):
    assert isinstance(text, TokenExamples)
    assert list(text.batches(2, 5)) == []


@pytest.mark.parametrize("cores", [1, 2])
def test_writing_in_turn_and_beside_the_forward_leave_the_same_bytes(make, monkeypatch, cores):
    monkeypatch.setattr(pipeline.activations.harvest, "_cores", lambda: cores)
    taken = []
    submit = pipeline.activations.harvest._InTurn.submit
    monkeypatch.setattr(pipeline.activations.harvest._InTurn, "submit", lambda *given: taken.append(1) or submit(*given))
    found = digests(make().artifact.folder)
    assert bool(taken) == (cores == 1), "torch has one thread here"
    monkeypatch.undo()
    assert digests(make("other").artifact.folder) == found
