"""A harvest that is cut off goes on at the first shard that is not written, and ends in the bytes of one that never was."""

import errno
import importlib.metadata
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from harvests import HOOKS, SPEC, digests, gpt, ids, made, published_gpt

import pipeline.activations.harvest
import pipeline.activations.seal
from pipeline.artifacts.errors import DamagedArtifact, UserError
from pipeline.artifacts.manifest import MANIFEST, Artifact
from pipeline.artifacts.storage import Folder
from pipeline.steps import harvest, seal_store
from pipeline.study.activations import Activations
from tests.conftest import Lookup
from tests.stores import harvest_job, harvested, sealed

KILLS = 20
together = multiprocessing.get_context("fork")


@pytest.fixture
def dataset(make_tokens):
    return make_tokens(ids(), 11)


def steps(folder: Path, model: Artifact, dataset: Artifact, **chosen):
    """The two steps as rules run them: `(harvest, seal)`."""
    spec = {**Activations(model="gpt", **{**SPEC, **chosen}).settings(), "split": "train"}
    given = [one.folder / MANIFEST for one in (model, dataset)]
    run = {"jobs": 1, "location": None}
    return (
        lambda: harvest.main({**spec, "run": {**run, "job": 0, "memory_mb": 64}}, *given, folder),
        lambda: seal_store.main({**spec, "run": run}, *given, folder),
    )


def killed_after(seconds: float, work) -> bool:
    """Runs `work` in a process and kills it; whether it was done before."""
    process = together.Process(target=work)
    process.start()
    process.join(seconds)
    done = process.exitcode is not None
    if not done:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    else:
        assert process.exitcode == 0
    return done


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(tmp_path, make_tokens):
    model, dataset = published_gpt(tmp_path / "model"), make_tokens(ids(501), 11)
    shape = {"chunk_rows": 4, "shard_rows": 4, "sparse": HOOKS[:1], "covariance": HOOKS[1:]}
    whole = steps(tmp_path / "whole", model, dataset, **shape)
    start = time.monotonic()
    whole[0]()
    takes = time.monotonic() - start
    whole[1]()
    folder = tmp_path / "killed"
    work, seal = steps(folder, model, dataset, **shape)
    shuffled, written, kills = random.Random(0), {}, 0
    while kills < KILLS:
        done = killed_after(shuffled.uniform(0.02, 2 * takes / KILLS), work)
        now = made(folder)
        assert written.items() <= now.items(), "a shard that was written is not made again"
        written = now
        assert not (folder / MANIFEST).exists()
        if done:  # all is written: some shard is taken away, so that there is work again
            for name in shuffled.sample(sorted(written), 40):
                (folder / "sums" / name).unlink()
                written.pop(name)
        kills += not done
    work()
    assert written.items() <= made(folder).items()
    seal()
    assert digests(folder) == digests(tmp_path / "whole")
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".partial"))]


@pytest.mark.slow
def test_the_step_itself_killed_goes_on(tmp_path, dataset):
    """The command as a rule runs it, in a process of its own."""
    model, folder = published_gpt(tmp_path / "model"), tmp_path / "store"
    spec = Activations(model="gpt", **{**SPEC, "chunk_rows": 1, "shard_rows": 1}).model_dump_json(
        exclude={"model", "splits", "jobs", "memory_mb", "location"}
    )
    spec = f'{spec[:-1]}, "split": "train", "run": {{"job": 0, "jobs": 1, "memory_mb": 64, "location": null}}}}'
    given = ["--model", model.folder / MANIFEST, "--dataset", dataset.folder / MANIFEST, "--out", folder]
    command = [sys.executable, "-m", "pipeline.steps.harvest", "--spec", spec, *map(str, given)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not made(folder):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.kill()
    process.wait()
    written = made(folder)
    assert 0 < len(written) < 61
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "harvest: 61 rows in" in done.stderr
    assert written.items() <= made(folder).items()
    assert len(made(folder)) == 61


DAMAGE = {
    "a hook's shard cut short": (f"store.zarr/{HOOKS[0]}/c/3/0", lambda path: os.truncate(path, 10), f"rows 24-31 of {HOOKS[0]}"),
    "a hook's shard lost": (f"store.zarr/{HOOKS[1]}/c/3/0", Path.unlink, f"rows 24-31 of {HOOKS[1]}"),
    "a bit of an index": ("store.zarr/token/c/3", lambda path: flip(path), "rows 24-31 of token"),
    "a bit of the flags": (f"store.zarr/sinks/{HOOKS[0]}/c/3", lambda path: flip(path), f"rows 24-31 of sinks/{HOOKS[0]}"),
    "the sums": ("sums/000003.safetensors", lambda path: flip(path), "sums of rows 24-31"),
    "the sums cut short": ("sums/000003.safetensors", lambda path: os.truncate(path, 5), "sums of rows 24-31"),
    "the sums of products": ("sums/000003.outer.safetensors", lambda path: flip(path), "sums of rows 24-31"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_shard_is_named_and_made_again_alone(tmp_path, dataset, capsys, what):
    name, damage, words = DAMAGE[what]
    spec = {**SPEC, "covariance": HOOKS}
    folder = tmp_path / "store"
    expected = digests(harvested(folder, gpt(), dataset, 8, **spec).artifact.folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if re.search(r"/c/|sums/", str(path)) and path.is_file()}
    damage(folder / name)
    capsys.readouterr()
    part = harvest_job(folder, gpt(), dataset, 8, **spec)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert str(folder / name.replace("outer.", "" if "sums" in words else "outer.")) in told[0]
    assert f"({words}): " in told[0]
    assert told[0].endswith("; made again")
    changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    own = ("c/3", "c/3/0", "000003.safetensors", "000003.outer.safetensors")
    assert {path for path in before if str(path).endswith(own)} == changed
    sealed(folder, [part], dataset, 8, **spec)
    assert digests(folder) == expected


def test_shards_in_each_others_place_are_found_and_made_again(tmp_path, dataset, capsys):
    """Whole files of the same size, in each of which every checksum of Zarr's is right."""
    folder = tmp_path / "store"
    part = harvest_job(folder, gpt(), dataset, 8, **SPEC)
    one, other = (folder / f"store.zarr/{HOOKS[1]}/c/{shard}/0" for shard in (1, 2))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(DamagedArtifact, match=r"c/1/0 \(rows 8-15 of .*\): the bytes differ from those written"):
        sealed(folder, [part], dataset, 8, **SPEC)
    capsys.readouterr()
    harvest_job(folder, gpt(), dataset, 8, **SPEC)
    assert len([line for line in capsys.readouterr().err.splitlines() if line.endswith("; made again")]) == 2
    assert (one.read_bytes(), other.read_bytes()) == (first, second)


@pytest.mark.parametrize("other", ["a setting", "the model"])
def test_shards_of_another_harvest_are_not_taken_over(tmp_path, other):
    models = [published_gpt(tmp_path / f"model{seed}", seed) for seed in range(2)]
    from pipeline.artifacts.publishing import publishing
    from pipeline.datasets import token_files  # the dataset of both

    with publishing(tmp_path / "tokens", "dataset", {"kind": "given"}, {}) as draft:
        file = token_files.SplitFile(draft, "train", 11)
        file.add(ids(), np.array([62]), np.array([True]))
        file.close()
        token_files.write_vocabulary(draft, [bytes([i]) for i in range(11)], {})
        draft.facts |= token_files.facts({"train": file}, 11, "bytes", [])
    dataset = Artifact.open(tmp_path / "tokens" / MANIFEST)
    first, second = (models[0], {}), (models[0], {"sinks_above": 3}) if other == "a setting" else (models[1], {})
    for work in steps(tmp_path / "store", first[0], dataset, **first[1]):
        work()
    before = made(tmp_path / "store")
    for folder in ("store", "whole"):
        for work in steps(tmp_path / folder, second[0], dataset, **second[1]):
            work()
    after = made(tmp_path / "store")
    assert before.keys() == after.keys()
    assert not before.items() & after.items()
    assert digests(tmp_path / "store") == digests(tmp_path / "whole")


def test_shards_that_another_processor_flagged_by_its_own_threshold_are_made_again(tmp_path, dataset, capsys, monkeypatch):
    spec, folder = {**SPEC, "sinks_above": 1.2}, tmp_path / "store"
    expected = digests(harvested(folder, gpt(), dataset, 8, **spec).artifact.folder)
    median = pipeline.activations.harvest._median
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.activations.harvest, "_median", lambda rows: median(rows) * 1.05)
        harvest_job(folder, gpt(), dataset, 8, number=0, jobs=2, **spec)
    capsys.readouterr()
    before = made(folder)
    part = harvest_job(folder, gpt(), dataset, 8, **spec)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 5
    assert all(one.endswith("flagged by other thresholds, which another processor found; made again") for one in told[:4])
    assert len(before.items() & made(folder).items()) == 4, "those that this one flagged are kept"
    sealed(folder, [part], dataset, 8, **spec)
    assert digests(folder) == expected


@pytest.mark.parametrize("name", [f"store.zarr/{HOOKS[1]}/c/3/0", "sums/000003.safetensors"])
def test_a_shard_that_the_disk_does_not_give_any_more_is_made_again(tmp_path, dataset, capsys, monkeypatch, name):
    folder = tmp_path / "store"
    expected = digests(harvested(folder, gpt(), dataset, 8, **SPEC).artifact.folder)
    real = {way: getattr(Folder, way) for way in ("blocks", "read", "remove")}
    bad = {name}

    def failing(way):
        def does(self, one):
            if way == "remove":
                bad.discard(one)
            elif one in bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder / one))
            return real[way](self, one)

        return does

    for way in real:
        monkeypatch.setattr(Folder, way, failing(way))
    capsys.readouterr()
    part = harvest_job(folder, gpt(), dataset, 8, **SPEC)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert re.fullmatch(rf"{folder}/{name} \(.*rows 24-31.*\): could not be read \(Input/output error\); made again", told[0])
    sealed(folder, [part], dataset, 8, **SPEC)
    assert digests(folder) == expected


def test_a_file_that_was_not_written_is_no_part_that_may_be_left_out(tmp_path, dataset):
    """As zarr leaves out chunks of zeros, were it told to: here all sequence numbers of the first shard are zero."""
    with zarr.config.set({"array.write_empty_chunks": False}), pytest.raises(UserError) as caught:
        harvest_job(tmp_path / "store", gpt(), dataset, 8, compression="zstd", **{**SPEC, "leave_out": "none"})
    assert "store.zarr/sequence/c/0: was not written, at rows 0-7; the shards before stand" in str(caught.value)
    assert not list((tmp_path / "store").glob("sums/*"))


@pytest.mark.parametrize("chosen", [{"compression": "zstd"}, {"sparse": HOOKS[:1]}])
def test_what_a_disk_makes_of_a_file_as_it_is_written_is_found(tmp_path, dataset, monkeypatch, chosen):
    name = "zstd" if "compression" in chosen else "values"
    path = f"store.zarr/{HOOKS[0]}/" + ("c/3/0" if name == "zstd" else "3/values/c/0")
    write = Path.write_bytes

    def flipped(self: Path, content) -> int:
        if str(self).endswith(path):
            content = bytes([content[0] ^ 1]) + bytes(content[1:])
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", flipped)
    part = harvest_job(tmp_path / "store", gpt(), dataset, 8, **SPEC, **chosen)
    with pytest.raises(UserError, match=r"rows 24-31 of blocks\.0\.mlp_hidden\): the bytes differ from those written; repair: "):
        sealed(tmp_path / "store", [part], dataset, 8, **SPEC, **chosen)


def test_the_digest_tells_libraries_and_gpus_apart(tmp_path, make_tokens, monkeypatch):
    model, dataset = published_gpt(tmp_path / "model"), make_tokens(ids(), 11)
    found = [harvest._digest({}, model, dataset)]
    for name in ("torch", "numpy", "zarr", "numcodecs"):
        with monkeypatch.context() as patch:
            patch.setattr(harvest, "version", lambda one, name=name: "0" if one == name else importlib.metadata.version(one))
            found.append(harvest._digest({}, model, dataset))
    for name in ("NVIDIA A100", "NVIDIA H100"):
        with monkeypatch.context() as patch:
            patch.setattr(harvest, "device", lambda: torch.device("cuda"))
            patch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
            found.append(harvest._digest({}, model, dataset))
    assert len(set(found)) == 7
    assert harvest._digest({}, model, dataset) == found[0]


def test_a_disk_that_is_full_when_a_job_is_done_ends_in_one_line(tmp_path, make_tokens, monkeypatch):
    model, dataset = published_gpt(tmp_path / "model"), make_tokens(ids(), 11)

    def full(path, value) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(pipeline.activations.seal, "write_json", full)
    with pytest.raises(UserError, match=r"^.*/parts/0\.json: No space left on device; the shards stand, and it goes on from them"):
        steps(tmp_path / "store", model, dataset)[0]()


def test_what_writers_left_is_gone_after_sealing(tmp_path, dataset, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("results/s/activations/x/train")
    expected = digests(harvested(folder, gpt(), dataset, 8, **SPEC).artifact.folder)
    left = [
        "store.zarr/zarr.json.1.part",
        f"store.zarr/{HOOKS[0]}/c/3/0.ab.partial",
        f"store.zarr/{HOOKS[0]}/c/9/0",
        "store.zarr/gone/zarr.json",
        "sums/000009.safetensors",
        "sums/000001.outer.safetensors",
        "parts/7.json",
        "parts/7.json.part",
        "harvest.json",
    ]
    for name in left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left")
    harvested(folder, gpt(), dataset, 8, **SPEC)
    assert digests(folder) == expected
    assert not (folder / "store.zarr/gone").exists()
    assert not (folder / "parts/7.json").exists()


def test_a_folder_of_the_user_keeps_what_is_no_stores(tmp_path, dataset):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    harvested(tmp_path / "mine", gpt(), dataset, 8, **SPEC)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"


WIDE = {"hooks": ["x"], "batch": 64, "chunk_rows": 256, "shard_rows": 256}


def wide() -> Lookup:
    """A hook of 512 numbers: half a MiB in a shard of 256 rows."""
    return Lookup(np.random.default_rng(0).normal(size=(256, 512)))


def test_a_file_that_may_not_grow_ends_in_one_line_and_the_harvest_goes_on(tmp_path, make_tokens):
    """A real limit of the system, of the size of files, that needs no rights to set."""
    dataset = make_tokens(np.arange(4097) % 256)
    expected = digests(harvested(tmp_path / "whole", wide(), dataset, 64, **WIDE).artifact.folder)
    work = together.Queue()

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
        try:
            harvest_job(tmp_path / "store", wide(), dataset, 64, **WIDE)
        except UserError as error:
            work.put(str(error))

    process = together.Process(target=limited)
    process.start()
    told = work.get(timeout=600)
    process.join()
    assert process.exitcode == 0
    assert "store.zarr: File too large, at rows 0-255; the shards before stand" in told
    assert "\n" not in told
    assert digests(harvested(tmp_path / "store", wide(), dataset, 64, **WIDE).artifact.folder) == expected


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode
    ):
        pytest.skip("a small disk cannot be mounted here (it takes root)")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_ends_in_one_line_and_the_harvest_goes_on(small_disk, tmp_path, make_tokens):
    """Another program takes the room that there was when the harvest began."""
    dataset = make_tokens(np.arange(2049) % 256)
    expected = digests(harvested(tmp_path / "whole", wide(), dataset, 64, **WIDE).artifact.folder)

    class Crowded(Lookup):
        calls = 0

        def forward(self, inputs, tap):
            self.calls += 1
            if self.calls == 2:
                (small_disk / "filler").write_bytes(bytes(6 * 2**20))
            return super().forward(inputs, tap)

    with pytest.raises(UserError) as caught:
        harvest_job(small_disk / "store", Crowded(wide().rows.numpy()), dataset, 64, **{**WIDE, "batch": 4})
    assert re.search(r"store\.zarr: No space left on device, at rows \d[\d,]*-\d[\d,]*; the shards before stand", str(caught.value))
    assert "\n" not in str(caught.value)
    written = made(small_disk / "store")
    assert 1 <= len(written) < 8
    with pytest.raises(UserError, match=r"rows need about .* are free on that disk; make room"):
        harvest_job(small_disk / "store", wide(), dataset, 64, **{**WIDE, "batch": 4})
    (small_disk / "filler").unlink()
    store = harvested(small_disk / "store", wide(), dataset, 64, **{**WIDE, "batch": 4})
    assert written.items() <= made(small_disk / "store").items()
    assert digests(store.artifact.folder).keys() == expected.keys()
    for name in ("x", "token", "sequence", "position"):
        files = [one for one in expected if one.startswith(f"store.zarr/{name}/")]
        assert all(digests(store.artifact.folder)[one] == expected[one] for one in files)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is set back through /proc, which is Linux")
def test_memory_does_not_grow_with_the_rows(tmp_path, make_tokens):
    """Peak memory of processes that harvest 16 and 192 MB: as good as equal."""
    splits = {times: make_tokens(np.arange(2048 * times + 1) % 256, name=f"tokens{times}") for times in (4, 48)}
    peaks = {
        times: peak_of(lambda times=times: harvest_job(tmp_path / str(times), wide(), splits[times], 64, **{**WIDE, "batch": 8}))
        for times in splits
    }
    assert peaks[48] - peaks[4] < 64e6, {times: f"{peak / 1e6:.0f} MB" for times, peak in peaks.items()}


def peak_of(work) -> int:
    """Peak memory, in bytes, of a process while it does `work`: of its own, not what it was forked with."""
    found = together.Queue()

    def watched() -> None:
        Path("/proc/self/clear_refs").write_text("5")
        work()
        status = Path("/proc/self/status").read_text()
        found.put(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024)

    process = together.Process(target=watched)
    process.start()
    peak = found.get(timeout=600)
    process.join()
    return peak
