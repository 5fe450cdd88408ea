"""Only what changed runs again: the change, and exactly the jobs it may cause."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import STUDY, Project

pytestmark = pytest.mark.slow

SAES = ("relu", "fixed", "topk_k=4", "topk_k=8")
EVERYTHING = {"make_dataset", "train_model", "harvest", "seal_store", "write_report"} | {
    f"{rule} {sae}" for rule in ("train_sae", "evaluate", "describe_features", "probe") for sae in SAES
}


def after(*saes: str) -> set[str]:
    """The jobs that an SAE trained again causes."""
    jobs = {f"{rule} {sae}" for rule in ("train_sae", "evaluate", "describe_features", "probe") for sae in saes}
    return {*jobs, "write_report"}


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def study(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        changed = copy.deepcopy(STUDY)
        change(changed)
        Project.write_study(_At(folder), changed)

    return write


class _At:
    def __init__(self, folder: Path) -> None:
        self.folder = folder


def add_architecture(folder: Path) -> None:
    for place in ("pipeline/study/saes", "pipeline/saes"):
        text = (folder / place / "topk.py").read_text()
        changed = text.replace('Literal["topk"]', 'Literal["other"]').replace("study.saes.topk", "study.saes.other")
        (folder / place / "other.py").write_text(changed)


TABLE = {
    "most memory of a harvest": (study(lambda s: s["activations"]["layer2"].update(memory_mb=2000)), set()),
    "a comment in a library module": (edit("pipeline/saes/base.py", "import torch\n", "import torch  # the tensor library\n"), set()),
    "a docstring in a library module": (edit("pipeline/saes/train.py", '"""Trains SAEs on', '"""Trains, step by step, SAEs on'), set()),
    "where curves are shown": (study(lambda s: s.update(tracking={"tensorboard": True})), set()),
    "the docstring of a setting": (edit("pipeline/study/ksparse.py", "Latents that may fire", "Most latents that may fire"), set()),
    "progress is shown otherwise": (edit("pipeline/console.py", "SECONDS_BETWEEN_LINES = 10.0", "SECONDS_BETWEEN_LINES = 5.0"), set()),
    "a new architecture": (add_architecture, set()),
    "a new option of the report": (
        edit("pipeline/study/sections.py", 'about: str = ""', 'about: str = ""\n    footer: str = ""'),
        {"write_report"},
    ),
    "the report's page": (edit("pipeline/report/page.html.jinja", "What was run", "What ran"), {"write_report"}),
    "one architecture": (
        edit("pipeline/saes/topk.py", "self.spec.auxk * parts", "1.0 * self.spec.auxk * parts"),
        after("fixed", "topk_k=4", "topk_k=8"),
    ),
    "the trainer of SAEs": (edit("pipeline/saes/verdicts.py", "_FALLEN = 0.95", "_FALLEN = 0.96"), after(*SAES)),
    "an SAE's k": (study(lambda s: s["saes"]["fixed"].update(k=5)), after("fixed")),
    "a new value in a sweep": (study(lambda s: s["saes"]["topk"]["sweep"]["k"].append(16)), after("topk_k=16")),
    "a value less in a sweep": (study(lambda s: s["saes"]["topk"]["sweep"]["k"].remove(8)), {"write_report"}),
    "a setting of the evaluation": (
        study(lambda s: s.update(evaluation={"active_above": 0.5})),
        {f"evaluate {sae}" for sae in SAES} | {"write_report"},
    ),
    "the dataset's seed": (study(lambda s: s["datasets"]["pointer"].update(seed=1)), EVERYTHING),
    "the order of keys in the study": (study(lambda s: s.update(saes=dict(reversed(s["saes"].items())))), {"write_report"}),
}


@pytest.fixture
def fresh(project: Project, tmp_path: Path) -> Project:
    """The finished study in a copy that a test may spoil, times kept."""
    return Project(tmp_path / "copy", project.folder)


def test_a_finished_study_has_nothing_to_do(project: Project):
    assert project.planned() == set()


@pytest.mark.parametrize("what", TABLE)
def test_a_change_runs_just_what_it_touches(fresh: Project, what: str):
    change, expected = TABLE[what]
    change(fresh.folder)
    assert fresh.planned() == expected


def test_changed_and_changed_back_before_a_run_is_nothing(fresh: Project):
    TABLE["an SAE's k"][0](fresh.folder)
    fresh.write_study(STUDY)
    assert fresh.planned() == set()


def test_changed_run_and_changed_back_is_what_was_overwritten(fresh: Project):
    TABLE["an SAE's k"][0](fresh.folder)
    fresh.run()
    assert fresh.planned() == set()
    fresh.write_study(STUDY)
    assert fresh.planned() == after("fixed")


def test_the_new_variant_runs_and_leaves_the_others_alone(fresh: Project):
    old = {path: path.stat().st_mtime_ns for path in fresh.folder.glob("results/small/saes/**/sae_weights.safetensors")}
    TABLE["a new value in a sweep"][0](fresh.folder)
    fresh.run()
    assert (fresh.folder / "results/small/saes/layer2/layer2/topk_k=16/sae_weights.safetensors").is_file()
    assert {path: path.stat().st_mtime_ns for path in old} == old


@pytest.mark.parametrize("jobs", [2, 5])
def test_another_number_of_jobs_keeps_every_shard_and_what_was_made_of_them(fresh: Project, jobs: int):
    stores = fresh.folder / "results/small/activations/layer2"
    kept = {path: path.stat().st_mtime_ns for path in stores.glob("*/store.zarr/layer2/c/*/0")}
    manifests = {path: path.read_bytes() for path in stores.glob("*/manifest.json")}
    assert (len(kept), len(manifests)) == (4 + 1, 2)
    for number in (jobs, 1):
        study(lambda s, number=number: s["activations"]["layer2"].update(jobs=number))(fresh.folder)
        fresh.run("--until", "seal_store")
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert {path: path.read_bytes() for path in manifests} == manifests
        assert fresh.planned() == set()
        assert sorted(path.name for path in (stores / "train/parts").iterdir()) == [f"{job}.json" for job in range(number)]


def test_each_split_has_so_many_jobs(fresh: Project):
    study(lambda s: s["activations"]["layer2"].update(jobs=3, dtype="float16"))(fresh.folder)
    shown = fresh.snakemake("-n")
    assert shown.returncode == 0, shown.stderr
    told = re.findall(r"Harvesting layer2 over (\w+), job (\d)", shown.stdout)
    assert sorted(told) == [(split, str(job)) for split in ("train", "validation") for job in range(3)]


def delete(shard: Path, other: Path) -> None:
    shard.unlink()


def empty(shard: Path, other: Path) -> None:
    shard.write_bytes(b"")


def swap(shard: Path, other: Path) -> None:
    first, second = shard.read_bytes(), other.read_bytes()
    shard.write_bytes(second)
    other.write_bytes(first)


def damage(shard: Path, other: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(delete, "missing"), (empty, "empty"), (swap, "holds the bytes of"), (damage, "differ")],
)
def test_a_spoilt_shard_is_named_and_the_printed_command_repairs_it(fresh: Project, spoil, words: str):
    shards = fresh.folder / "results/small/activations/layer2/train/store.zarr/layer2/c"
    spoil(shards / "1/0", shards / "2/0")
    retrained = fresh.snakemake("--forcerun", "results/small/saes/layer2/layer2/relu/manifest.json")
    assert retrained.returncode != 0
    line = next(line for line in retrained.stderr.splitlines() if line.startswith("error: "))
    assert re.search(r"store\.zarr/layer2/c/1/0 \(rows (128|192)-255 of layer2\): ", line), "the shard, or the chunk of it"
    assert words in line
    command = line.split("repair: python ")[1].split()
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*/0") if path.parent.name not in ("1", "2")}
    manifest = (shards.parents[2] / "manifest.json").read_bytes()
    repaired = fresh.python(*command)
    assert repaired.returncode == 0, repaired.stderr[-3000:]
    assert (shards.parents[2] / "manifest.json").read_bytes() == manifest
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "undamaged shards are not made again"
    assert fresh.planned() == set()  # the same bytes came back, so nothing that was made of them runs
    assert fresh.python("-m", "pipeline", "verify").returncode == 0


def test_clean_removes_what_no_study_names_any_more(fresh: Project):
    smaller = copy.deepcopy(STUDY)
    smaller["saes"]["topk"]["sweep"]["k"].remove(8)
    fresh.write_study(smaller)
    results = fresh.folder / "results/small"
    assert (results / "features/layer2/layer2/topk_k=8").is_dir()
    kept = sorted(path for path in results.rglob("*") if path.is_file() and "topk_k=8" not in path.parts)
    shown = fresh.python("-m", "pipeline", "clean", "--dry-run")
    assert "results/small/saes/layer2/layer2/topk_k=8" in shown.stderr
    assert (results / "saes/layer2/layer2/topk_k=8").is_dir()
    cleaned = fresh.python("-m", "pipeline", "clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert sorted(path for path in results.rglob("*") if path.is_file()) == kept
