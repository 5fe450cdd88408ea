"""A harvest that several jobs share leaves the bytes of one job, whoever writes which shard and when."""

import multiprocessing
import shutil

import numpy as np
import pytest
from harvests import HOOKS, SPEC, digests, gpt, ids

import pipeline.activations.harvest
from pipeline.activations.harvest import Job
from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import MANIFEST
from tests.stores import harvest_job, harvested, sealed

SETTINGS = {
    "plain": {},
    "batches over the ends of shards": {"batch": 3},
    "one sequence at a time": {"batch": 1},
    "one batch for all": {"batch": 100},
    "special tokens left out": {"leave_out": "special", "batch": 3},
    "beginnings left out": {"leave_out": "beginning"},
    "limited": {"rows": 37, "batch": 3},
    "sinks": {"sinks_above": 1.2},
    "sparse": {"sparse": HOOKS[:1], "batch": 3},
    "covariance": {"covariance": HOOKS},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16", "sparse": HOOKS[1:]},
    "zstd": {"compression": "zstd"},
    "blosc": {"compression": "blosc", "sparse": HOOKS[:1]},
    "everything": {"leave_out": "special", "batch": 3, "sinks_above": 1.2, "sparse": HOOKS[:1], "covariance": HOOKS, "dtype": "bfloat16"},
}


@pytest.fixture
def dataset(make_tokens):
    """61 positions in windows of 8, token 0 a special one."""
    return make_tokens(ids(), 11, special=[0])


@pytest.fixture
def model():
    return gpt()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_any_number_of_jobs_leaves_the_same_bytes(tmp_path, model, dataset, settings):
    spec = {**SPEC, "leave_out": "none", **settings}
    one = harvested(tmp_path / "one", model, dataset, 8, **spec)
    expected = digests(one.artifact.folder)
    assert len(expected) > 20
    for jobs in (2, 3, 5, 7, 20):
        store = harvested(tmp_path / str(jobs), model, dataset, 8, jobs=jobs, **spec)
        assert digests(store.artifact.folder) == expected


@pytest.mark.parametrize(("count", "jobs"), [(8, 1), (8, 3), (8, 7), (8, 8), (8, 20), (1, 5), (1000, 7)])
def test_each_shard_is_some_jobs_and_no_two_jobs(count, jobs):
    shards = [list(Job(number, jobs).shards(count)) for number in range(jobs)]
    assert [shard for mine in shards for shard in mine] == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_jobs_in_any_order_leave_the_same_bytes(tmp_path, model, dataset):
    expected = digests(harvested(tmp_path / "one", model, dataset, 8, **SPEC).artifact.folder)
    parts = {number: harvest_job(tmp_path / "store", model, dataset, 8, number, 3, **SPEC) for number in (2, 0, 1)}
    sealed(tmp_path / "store", [parts[number] for number in range(3)], dataset, 8, **SPEC)
    assert digests(tmp_path / "store") == expected


@pytest.mark.parametrize("leftover", ["nothing", "another store"])
def test_jobs_that_write_at_the_same_time_leave_the_same_bytes(tmp_path, model, dataset, leftover):
    spec = {**SPEC, "batch": 3, "chunk_rows": 1, "shard_rows": 1, "sparse": HOOKS[:1]}
    expected = digests(harvested(tmp_path / "one", model, dataset, 8, **spec).artifact.folder)
    if leftover == "another store":
        harvested(tmp_path / "store", model, dataset, 8, **SPEC)
    together = multiprocessing.get_context("fork")
    jobs, start = 4, together.Barrier(4)

    def job(number: int) -> None:
        start.wait()
        harvest_job(tmp_path / "store", model, dataset, 8, number, jobs, digest="of them all", **spec)

    processes = [together.Process(target=job, args=(number,)) for number in range(jobs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * jobs
    part = harvest_job(tmp_path / "store", model, dataset, 8, 0, 1, digest="of them all", **spec)
    sealed(tmp_path / "store", [part], dataset, 8, **spec)
    found = digests(tmp_path / "store")
    assert {name for name in found if "sums" not in name and found[name] != expected.get(name)} == {MANIFEST}
    assert found.keys() == expected.keys()


def test_other_numbers_of_jobs_keep_every_shard_and_leave_nothing_behind(tmp_path, model, dataset):
    folder = tmp_path / "store"
    expected = digests(harvested(folder, model, dataset, 8, jobs=7, **SPEC).artifact.folder)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("c/*") if path.is_file() and "statistics" not in path.parts}
    for jobs in (2, 3, 1, 20):
        assert digests(harvested(folder, model, dataset, 8, jobs=jobs, **SPEC).artifact.folder) == expected
        assert {path: path.stat().st_mtime_ns for path in written} == written


def test_jobs_of_different_harvests_are_not_sealed_together(tmp_path, model, dataset):
    parts = [harvest_job(tmp_path / "store", model, dataset, 8, number, 2, digest=f"of {number}", **SPEC) for number in range(2)]
    with pytest.raises(UserError, match="its jobs ran with other code or settings"):
        sealed(tmp_path / "store", parts, dataset, 8, **SPEC)
    assert not (tmp_path / "store" / MANIFEST).exists()


def test_jobs_that_found_different_medians_are_not_sealed_together(tmp_path, model, dataset, monkeypatch):
    parts = [harvest_job(tmp_path / "store", model, dataset, 8, 0, 2, **SPEC)]
    median = pipeline.activations.harvest._median
    monkeypatch.setattr(pipeline.activations.harvest, "_median", lambda rows: median(rows) + 1)
    parts.append(harvest_job(tmp_path / "store", model, dataset, 8, 1, 2, **SPEC))
    with pytest.raises(UserError, match="its jobs found different medians or sizes"):
        sealed(tmp_path / "store", parts, dataset, 8, **SPEC)


def test_a_job_that_did_not_run_is_told_by_its_first_shard(tmp_path, model, dataset):
    part = harvest_job(tmp_path / "store", model, dataset, 8, 0, 2, **SPEC)
    with pytest.raises(UserError, match=r"sums/000003\.safetensors \(rows 24-31\): the file is missing; repair: "):
        sealed(tmp_path / "store", [part, part], dataset, 8, **SPEC)


def test_tables_are_shared_as_well(tmp_path, make_table):
    class Passing:
        def __call__(self, inputs, tap):
            return tap("x", inputs)

    table = make_table(np.random.default_rng(0).normal(size=(50, 3)))
    stores = [harvested(tmp_path / str(jobs), Passing(), table, jobs=jobs, chunk_rows=4, shard_rows=8) for jobs in (1, 2, 7)]
    assert digests(tmp_path / "2") == digests(tmp_path / "7") == digests(tmp_path / "1")
    assert np.array_equal(stores[1]["sequence"].read(0, 50), np.arange(50))


def test_a_store_is_read_where_it_was_moved_to(tmp_path, model, dataset):
    store = harvested(tmp_path / "here", model, dataset, 8, jobs=3, **SPEC)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = ActivationStore(tmp_path / "there" / MANIFEST)
    assert np.array_equal(moved[HOOKS[0]].read(0, 61), harvested(tmp_path / "here", model, dataset, 8, **SPEC)[HOOKS[0]].read(0, 61))
    assert len(moved) == len(store)
