"""Shuffled batches: every row once an epoch, in an order that a seed decides, within the memory that is given."""

import ctypes
import errno
import gc
import re
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.activations import mapped
from pipeline.activations.chunks import Chunks
from pipeline.activations.loader import ActivationLoader, Position, _ahead
from pipeline.activations.mapped import supported
from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST
from tests.stores import harvested

WIDTH = 4096
"""So wide that a mebibyte holds 64 rows."""
ROOM = 1


def numbers(batches) -> list[int]:
    """Which rows came; each begins with its number, and ends with ten times that."""
    found = []
    for batch in batches:
        x = batch["x"]
        assert x.dtype == torch.float32
        assert torch.equal(x[:, 0], batch.rows.float())
        assert torch.equal(x[:, -1], 10 * x[:, 0])
        found += batch.rows.tolist()
    return found


@pytest.fixture
def store(make_store):
    """A store whose row i begins with i: `store(rows)`."""

    def store(rows: int, **sizes) -> ActivationStore:
        values = np.zeros((rows, WIDTH), dtype=np.float32)
        values[:, 0] = np.arange(rows)
        values[:, -1] = 10 * np.arange(rows)
        return make_store(values, name=f"rows{rows}", **sizes)

    return store


@pytest.fixture
def read(monkeypatch) -> Counter:
    """How often each chunk of a hook is read."""
    seen: Counter = Counter()
    into, whole, mapped = Chunks.read_into, Chunks.read, Chunks.map_into
    monkeypatch.setattr(Chunks, "read_into", lambda self, chunk, rows: seen.update([chunk]) or into(self, chunk, rows))
    monkeypatch.setattr(Chunks, "map_into", lambda self, chunks, files: seen.update(chunks) or mapped(self, chunks, files))
    monkeypatch.setattr(Chunks, "read", lambda self, chunk: (self.width and seen.update([chunk])) or whole(self, chunk))
    return seen


@pytest.fixture(params=["mapped", "copied"])
def held(request, monkeypatch) -> str:
    """How rows are held that are not compressed: as where files can be mapped, and as elsewhere."""
    if request.param == "copied":
        monkeypatch.setattr("pipeline.activations.chunks.supported", lambda: False)
    elif not supported():
        pytest.skip("this system maps no files as the loader needs it")
    return request.param


CASES = [
    pytest.param(40, 7, 2048, id="all at once"),
    pytest.param(40, 7, ROOM, id="all at once, just"),
    pytest.param(40, 100, 2048, id="all at once, one batch"),
    pytest.param(65, 7, ROOM, id="in halves, just"),
    pytest.param(203, 10, ROOM, id="in halves, the last chunk partial"),
    pytest.param(192, 32, ROOM, id="in halves, even"),
    pytest.param(203, 1000, ROOM, id="in halves, batches larger than what is held"),
    pytest.param(129, 10, ROOM, id="in halves, one row in the last chunk"),
]


@pytest.mark.parametrize(("rows", "size", "memory"), CASES)
def test_every_row_comes_once_an_epoch_in_batches_equal_but_for_a_row(store, held, rows, size, memory):
    loader = ActivationLoader(store(rows), "x", size, seed=0, memory_mb=memory)
    assert loader.exact == (rows == 40)
    for epoch in range(3):
        batches = list(loader.epoch(epoch))
        assert sorted(numbers(batches)) == list(range(rows))
        sizes = [len(batch) for batch in batches]
        assert len(sizes) == loader.steps() == -(-rows // size)
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= size


@pytest.mark.parametrize(("rows", "size", "memory"), CASES)
def test_the_order_is_a_function_of_seed_and_epoch(store, rows, size, memory):
    made = store(rows)

    def order(seed, epoch):
        return numbers(ActivationLoader(made, "x", size, seed, memory).epoch(epoch))

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert order(0, 1) != first
    assert order(1, 0) != first
    assert first != sorted(first)


def test_the_order_does_not_depend_on_how_chunks_are_stored_or_what_was_read_before(make_store):
    values = np.arange(203 * WIDTH, dtype=np.float32).reshape(203, WIDTH)
    orders = []
    for compression in ("none", "zstd"):
        loader = ActivationLoader(make_store(values, name=compression, compression=compression), "x", 10, seed=0, memory_mb=ROOM)
        list(loader.epoch(0))
        batches = list(loader.epoch(2))
        assert all(np.array_equal(batch["x"], values[batch.rows]) for batch in batches)
        orders.append([batch.rows.tolist() for batch in batches])
    assert orders[0] == orders[1]


@pytest.mark.parametrize(("rows", "memory"), [(40, 2048), (203, ROOM)])
def test_reading_resumes_anywhere_as_if_never_stopped(store, rows, memory):
    made = store(rows)
    whole = list(ActivationLoader(made, "x", 10, seed=3, memory_mb=memory).batches(epochs=3))
    steps = -(-rows // 10)
    assert [batch.after for batch in whole] == [Position(*divmod(i + 1, steps)) for i in range(3 * steps)]
    again = ActivationLoader(made, "x", 10, seed=3, memory_mb=memory)
    for at, batch in enumerate(whole):
        rest = list(again.batches(batch.after, epochs=3))
        assert numbers(rest) == numbers(whole[at + 1 :])
        assert [len(one) for one in rest] == [len(one) for one in whole[at + 1 :]]
    for start in range(steps + 1):
        assert numbers(again.epoch(1, start)) == numbers(whole[steps + start : 2 * steps])
    with pytest.raises(ValueError, match=f"batch {steps + 1} of an epoch of {steps}"):
        again.epoch(1, steps + 1)


def test_to_resume_reads_no_more_than_what_is_held_then_and_after(store, read):
    loader = ActivationLoader(store(203), "x", 10, seed=0, memory_mb=ROOM)
    last = next(loader.epoch(0, loader.steps() - 1))
    assert sum(read.values()) <= loader.blocks_held
    assert len(last) == 203 // 21


def test_each_chunk_is_read_once_an_epoch_and_when_all_fit_once(store, held, read):
    for rows, times in ((203, 2), (40, 1)):
        read.clear()
        loader = ActivationLoader(store(rows), "x", 8, seed=0, memory_mb=ROOM)
        read.clear()
        list(loader.batches(epochs=2))
        assert read == dict.fromkeys(range(-(-rows // 4)), times)


def test_the_exact_permutation_mixes_all_rows(store):
    """Rows that were next to each other in the store are not next to each other in the order."""
    order = numbers(ActivationLoader(store(64), "x", 8, seed=0, memory_mb=16).epoch(0))
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.15
    assert 8 < sum(row < 32 for row in order[:32]) < 24


def test_chunks_are_mixed_across_the_store_and_within_what_is_held(store):
    loader = ActivationLoader(store(203), "x", 8, seed=0, memory_mb=ROOM)
    held = numbers(loader.epoch(0))[: 4 * 5]
    assert loader.blocks_held == 5
    assert len({row // 4 for row in held}) == 5
    assert max(held) - min(held) > 60, "chunks come from everywhere"
    assert held != sorted(held)
    assert np.mean(np.diff([row // 4 for row in held]) == 0) < 0.5, "rows of a chunk do not stay together"
    together = {frozenset(row // 4 for row in numbers(loader.epoch(epoch))[:20]) for epoch in range(4)}
    assert len(together) == 4, "other chunks are held together in every epoch"


class TwoHooks(torch.nn.Module):
    """`wide` is the input, `narrow` its first quarter, doubled."""

    def forward(self, inputs, tap):
        return tap("narrow", 2 * tap("wide", inputs)[:, : WIDTH // 4])


@pytest.mark.parametrize("memory", [64, 16])
def test_hooks_that_are_read_together_give_the_same_rows(make_table, tmp_path, memory):
    values = np.random.default_rng(0).normal(size=(700, WIDTH)).astype(np.float32)
    made = harvested(tmp_path / "two", TwoHooks(), make_table(values), hooks=["wide", "narrow"], shard_rows=256, batch=16)
    loader = ActivationLoader(made, ["wide", "narrow"], 64, seed=0, memory_mb=memory)
    assert [made[hook].chunk_rows for hook in made.hooks] == [64, 256]
    assert (loader.blocks.size, loader.exact) == (256, memory == 64)
    batches = list(loader.epoch(0))
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(700))
    for batch in batches:
        assert np.array_equal(batch["wide"], values[batch.rows])
        assert np.array_equal(batch["narrow"], 2 * values[batch.rows, : WIDTH // 4])
    alone = ActivationLoader(made, "narrow", 64, seed=0, memory_mb=memory)
    assert next(alone.epoch(0)).values.keys() == {"narrow"}


def test_rows_that_are_flagged_for_any_hook_that_is_read_are_left_out(make_table, tmp_path):
    values = np.random.default_rng(0).normal(size=(150, WIDTH)).astype(np.float32)
    values[[3, 77, 149], 0] = 1e4  # seen by both
    values[[4, 120], -1] = 1e4  # only by the wide one
    made = harvested(tmp_path / "two", TwoHooks(), make_table(values), hooks=["wide", "narrow"], chunk_rows=4, shard_rows=8, batch=16)
    for hooks, flagged in ((["narrow"], {3, 77, 149}), (["narrow", "wide"], {3, 4, 77, 120, 149})):
        for memory in (ROOM, 64):
            loader = ActivationLoader(made, hooks, 8, seed=0, memory_mb=memory)
            rows = [row for batch in loader.epoch(0) for row in batch.rows.tolist()]
            assert sorted(rows) == sorted(set(range(150)) - flagged)
            assert len(rows) == loader.rows
            rest = [row for batch in loader.epoch(0, 11) for row in batch.rows.tolist()]
            assert rest == rows[-len(rest) :]


@pytest.mark.parametrize("memory", [ROOM, 64])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("sparse", [[], ["x"]])
def test_numbers_are_those_that_the_store_gives_as_float32(make_store, dtype, sparse, memory):
    chance = np.random.default_rng(0)
    values = chance.normal(size=(503, WIDTH)) * (chance.random((503, WIDTH)) < 0.3)
    values[17] = 0
    made = make_store(values, dtype=dtype, sparse=sparse, chunk_rows=8, shard_rows=16)
    loader = ActivationLoader(made, "x", 32, seed=0, memory_mb=memory)
    assert loader.exact == (memory == 64)
    stored = made["x"].read(0, 503)
    seen = []
    for batch in loader.epoch(0):
        assert batch["x"].dtype == torch.float32
        assert np.array_equal(batch["x"], stored[batch.rows])
        seen += batch.rows.tolist()
    assert sorted(seen) == list(range(503))


@pytest.mark.parametrize("sparse", [[], ["x"]])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_memory_is_bounded_by_the_setting_while_the_other_half_fills(make_store, monkeypatch, sparse, compression):
    """Counted by Python itself: everything that numpy allocates between the opening and the end of two epochs. Batches are torch's."""
    chance = np.random.default_rng(0)
    values = chance.normal(size=(1203, WIDTH)) * (chance.random((1203, WIDTH)) < 0.3)
    made = make_store(values, sparse=sparse, compression=compression, chunk_rows=8, shard_rows=64)
    memory = 4
    monkeypatch.setattr("pipeline.activations.chunks.supported", lambda: False)  # of mapped files: the next test
    list(ActivationLoader(made, "x", 64, seed=0, memory_mb=memory).epoch(0))
    loader = ActivationLoader(made, "x", 64, seed=0, memory_mb=memory)
    assert not loader.exact
    tracemalloc.start()
    try:
        for _ in loader.batches(epochs=2):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(loader._memories) == 2
    assert 0.45 * memory * 2**20 < peak < memory * 2**20


def resident(folder: Path) -> int:
    """Bytes of files under a folder that this process has mapped and that are in its memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        inside = str(folder) in line if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line) else inside
        found += 1024 * int(line.split()[1]) if inside and line.startswith("Rss:") else 0
    return found


@pytest.mark.skipif(not supported(), reason="this system maps no files as the loader needs it")
def test_mapped_files_take_no_more_of_the_memory_than_the_setting(store):
    made, memory = store(1203, chunk_rows=8, shard_rows=64), 4
    loader = ActivationLoader(made, "x", 64, seed=0, memory_mb=memory)
    assert not loader.exact
    seen = [resident(made.artifact.folder) for _ in loader.batches(epochs=2)]
    chunk, around = 8 * WIDTH * 4, 2**17  # the kernel maps what it has at hand of 64 KiB before and after
    assert loader.blocks_held * chunk < max(seen) < 2 * loader.blocks_held * (chunk + around) < 1203 * WIDTH * 4 / 2
    del loader
    gc.collect()
    assert resident(made.artifact.folder) == 0, "nothing is mapped any more"


def test_mapped_and_copied_rows_come_in_the_same_order(make_store, monkeypatch):
    values = np.random.default_rng(0).normal(size=(203, 70))  # rows and chunks that end on no page
    stores = [make_store(values, name=dtype, dtype=dtype, chunk_rows=8, shard_rows=32) for dtype in ("float32", "float16", "bfloat16")]
    found = []
    for able in (lambda: True, lambda: False):
        monkeypatch.setattr("pipeline.activations.chunks.supported", able)
        found.append([batch for made in stores for batch in ActivationLoader(made, "x", 10, 0, ROOM).batches(epochs=2)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one["x"], other["x"])


@pytest.mark.skipif(not supported(), reason="this system maps no files as the loader needs it")
@pytest.mark.parametrize(("fails", "told"), [("mmap", "Cannot allocate memory"), ("madvise", "Bad address")])
def test_a_file_that_cannot_be_mapped_or_brought_in_is_named_and_nothing_else_is_said_of_it(store, monkeypatch, fails, told):
    made, own = store(203), mapped._system

    def system(name: str):
        def failing(*given):
            if name == "madvise" and given[-1] != mapped.POPULATE_READ:
                return own(name)(*given)
            ctypes.set_errno(errno.ENOMEM if name == "mmap" else errno.EFAULT)
            return -1

        return failing if name == fails else own(name)

    monkeypatch.setattr(mapped, "_system", system)
    loader = ActivationLoader(made, "x", 10, 0, memory_mb=2048)
    with pytest.raises(UserError, match=rf"x/c/\d+/0 \(rows .* of x\): could not be read \({told}\)") as caught:
        list(loader.epoch(0))
    assert "repair" not in str(caught.value)


@pytest.mark.skipif(not supported(), reason="this system maps no files as the loader needs it")
def test_a_file_that_has_another_size_by_the_time_it_is_mapped_is_damage(store):
    made = store(203)
    loader = ActivationLoader(made, "x", 10, 0, memory_mb=2048)
    column = loader.columns[0]
    column.chunks._checksums(2)  # its size is as published
    path = made.artifact.folder / "store.zarr/x/c/2/0"
    content = path.read_bytes()
    path.write_bytes(content + b"more")
    with pytest.raises(DamagedArtifact, match=r"x/c/2/0"):
        list(loader.epoch(0))


def test_too_little_memory_is_named_with_what_would_do(store):
    made = store(203, chunk_rows=64, shard_rows=64)
    with pytest.raises(UserError, match=r"memory_mb: 1 holds no two blocks of 64 rows; give at least \d+") as caught:
        ActivationLoader(made, "x", 8, seed=0, memory_mb=1)
    least = int(str(caught.value).split()[-1])
    assert sorted(numbers(ActivationLoader(made, "x", 8, 0, least).epoch(0))) == list(range(203))
    with pytest.raises(UserError):
        ActivationLoader(made, "x", 8, 0, least - 1)


@pytest.mark.parametrize(("rows", "memory"), [(203, ROOM), (40, 2048)])
def test_damage_reaches_who_reads_and_ends_the_threads(store, held, rows, memory):
    made = store(rows)
    before = threading.active_count()
    path = made.artifact.folder / "store.zarr/x/c/2/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    loader = ActivationLoader(ActivationStore(made.artifact.folder / MANIFEST), "x", 10, seed=0, memory_mb=memory)
    for _ in range(2):
        with pytest.raises(DamagedArtifact, match=r"x/c/2/0 \(rows 16-\d+ of x\).*repair: "):
            list(loader.epoch(0))
        assert threading.active_count() == before
    content[100] ^= 1
    path.write_bytes(content)
    assert sorted(numbers(loader.epoch(0))) == list(range(rows))


def test_threads_end_when_reading_stops_early(store):
    before = threading.active_count()
    loader = ActivationLoader(store(203), "x", 10, seed=0, memory_mb=ROOM)
    whole = numbers(loader.epoch(0))
    for _ in range(5):
        batches = loader.epoch(0)
        next(batches)
        assert threading.active_count() > before
        batches.close()
        assert threading.active_count() == before

    def fails():
        for _ in loader.epoch(1):
            raise KeyError("of whoever reads")

    with pytest.raises(KeyError):
        fails()
    assert numbers(loader.epoch(0)) == whole


def test_a_second_pass_in_the_same_memory_is_refused(store):
    loader = ActivationLoader(store(203), "x", 10, seed=0, memory_mb=ROOM)
    first = loader.epoch(0)
    next(first)
    with pytest.raises(RuntimeError, match="make a second loader"):
        next(loader.epoch(1))
    first.close()
    assert sorted(numbers(loader.epoch(1))) == list(range(203))


def test_passes_over_rows_that_all_fit_do_not_disturb_each_other(store):
    loader = ActivationLoader(store(40), "x", 10, seed=0, memory_mb=2048)
    apart = [numbers(loader.epoch(epoch)) for epoch in (0, 1)]
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert [numbers(one) for one in zip(*pairs, strict=True)] == apart


def test_batches_that_are_made_ahead_are_the_same_and_stop_with_who_reads(store):
    """What a GPU is fed by; the thread that makes them works on the processor too."""
    before = threading.active_count()
    loader = ActivationLoader(store(203), "x", 10, seed=0, memory_mb=ROOM)
    plain = numbers(loader.epoch(0))
    assert numbers(_ahead(loader.epoch(0))) == plain
    batches = _ahead(loader.epoch(0))
    next(batches)
    batches.close()
    assert threading.active_count() == before
    assert numbers(loader.epoch(0)) == plain

    def faulty():
        yield from loader.epoch(0, 15)
        raise DamagedArtifact("a file")

    seen = []
    with pytest.raises(DamagedArtifact, match="a file"):
        seen.extend(_ahead(faulty()))
    assert len(seen) == loader.steps() - 15
    assert threading.active_count() == before


@pytest.mark.parametrize("ahead", [False, True])
def test_a_program_ends_at_once_and_without_a_word_though_nobody_closed_its_reading(store, ahead):
    """All rows are 1,024 blocks, and it ends while those after the first half are read, one in 50 ms."""
    made = store(4096)
    code = textwrap.dedent(f"""
        import sys, time
        from pipeline.activations.chunks import Chunks
        from pipeline.activations.loader import ActivationLoader, _ahead
        from pipeline.activations.store import ActivationStore

        loader = ActivationLoader(ActivationStore({str(made.artifact.folder / MANIFEST)!r}), "x", 64, 0, 48)
        assert not loader.exact and loader.blocks_held > 200
        batches = loader.batches()
        if {ahead}:
            batches = _ahead(batches)
        next(batches)
        into, mapped = Chunks.read_into, Chunks.map_into
        Chunks.read_into = lambda *given: time.sleep(0.05) or into(*given)
        Chunks.map_into = lambda self, chunks, files: time.sleep(0.05 * len(chunks)) or mapped(self, chunks, files)
        for _ in range({2 * 4096 // 64 // 3}):
            next(batches)
        print("ends", time.time())
        sys.exit(3)
    """)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert (ran.returncode, ran.stderr) == (3, "")
    assert time.time() - float(ran.stdout.split()[-1]) < 5, "8 s and more would be what the threads had been given"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_come_the_same_rows(store, dtype):
    made = store(203, dtype=dtype)
    here = list(ActivationLoader(made, "x", 10, seed=0, memory_mb=ROOM).epoch(0))
    there = list(ActivationLoader(made, "x", 10, seed=0, memory_mb=ROOM, device="cuda").epoch(0))
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        assert other["x"].is_cuda
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one["x"], other["x"].cpu())
