"""Variants that are trained in one job: which jobs there are, and what a change of one of them runs."""

import copy
import json

import pytest

from .conftest import PLANNED, STUDY, Project

pytestmark = pytest.mark.slow

TOGETHER = copy.deepcopy(STUDY)
TOGETHER["saes"] = {
    "topk": {
        "architecture": "topk", "activations": "layer2", "latents": 32, "train_together": True, "training": {"epochs": 2, "batch": 100},
        "sweep": {"k": [4, 8], "seed": [0, 1]},
    },
    "topk_k": {"architecture": "topk", "activations": "layer2", "latents": 32, "k": 4, "training": {"epochs": 2, "batch": 100}},
}  # fmt: skip
del TOGETHER["probe"]
VARIANTS = [f"topk_k={k}_seed={seed}" for k in (4, 8) for seed in (0, 1)]


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Project:
    """A study whose sweep is trained in one job for each seed, beside an entry whose name begins alike; finished."""
    made = Project(tmp_path_factory.mktemp("together"))
    made.write_study(TOGETHER)
    assert {job for job in made.planned() if job.startswith("train_sae")} == {
        "train_saes_topk_k=4_seed=0", "train_saes_topk_k=4_seed=1", "train_sae topk_k",
    }  # fmt: skip
    made.run()
    return made


def test_a_profile_reaches_what_is_trained_together_by_one_name(tmp_path):
    """As SLURM's would, whatever the variants are called; and one of the jobs by its own."""
    made, one = Project(tmp_path), "train_saes_topk_k=4_seed=1"
    made.write_study(TOGETHER)
    given = {"train_saes": {"mem_mb": 777, "slurm_partition": "long"}, one: {"mem_mb": 888}}
    told = 'print(record.rule_name, record.resources.get("mem_mb"), record.resources.get("slurm_partition"))'
    script = PLANNED.replace('print(record.rule_name, (record.wildcards or {}).get("sae", ""))', told)
    done = made.python("-c", script.replace("ResourceSettings(cores=2)", f"ResourceSettings(cores=2, overwrite_resources={given})"))
    assert done.returncode == 0, done.stderr[-3000:]
    asked = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("train_sae"))
    assert not asked.pop("train_sae").startswith("777")
    assert asked == {"train_saes_topk_k=4_seed=0": "777 long", one: "888 None"}


def test_when_finished_there_is_nothing_to_do(together: Project):
    assert together.planned() == set()


def test_a_variant_is_the_one_that_is_trained_alone(together: Project):
    """`topk_k` has the settings of one of them, but for its name."""
    saes = together.folder / "results/small/saes/layer2/layer2"
    assert (saes / "topk_k/manifest.json").read_bytes() == (saes / "topk_k=4_seed=0/manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("sweep", "groups", "evaluated"),
    [
        ({"k": [4, 9], "seed": [0, 1]}, ["k=4_seed=0", "k=4_seed=1"], ["k=4_seed=0", "k=9_seed=0", "k=4_seed=1", "k=9_seed=1"]),
        ({"k": [4, 8], "seed": [0, 1, 2]}, ["k=4_seed=2"], ["k=4_seed=2", "k=8_seed=2"]),
    ],
    ids=["a variant changes", "a group is added"],
)
def test_a_change_of_one_variant_runs_its_group_and_no_other(together: Project, sweep, groups, evaluated):
    changed = copy.deepcopy(TOGETHER)
    changed["saes"]["topk"]["sweep"] = sweep
    together.write_study(changed)
    try:
        found = together.planned()
    finally:
        together.write_study(TOGETHER)
    assert found == {
        *(f"train_saes_topk_{name}" for name in groups),
        *(f"{rule} topk_{name}" for rule in ("evaluate", "describe_features") for name in evaluated),
        "write_report",
    }


def test_trained_alone_after_all_nothing_differs(together: Project):
    """The same settings, now one job each: nothing to train again would be best, and what Snakemake does is to look at each rule's params;
    so they run, and leave the same bytes."""
    changed = copy.deepcopy(TOGETHER)
    changed["saes"]["topk"]["train_together"] = False
    manifests = [together.folder / "results/small/saes/layer2/layer2" / name / "manifest.json" for name in VARIANTS]
    before = [manifest.read_bytes() for manifest in manifests]
    together.write_study(changed)
    try:
        together.run("--until", "train_sae")
    finally:
        together.write_study(TOGETHER)
    assert [manifest.read_bytes() for manifest in manifests] == before


def test_a_damaged_variant_is_repaired(together: Project):
    folder = together.folder / "results/small/saes/layer2/layer2/topk_k=8_seed=1"
    weights = folder / "sae_weights.safetensors"
    whole, manifest = weights.read_bytes(), json.loads((folder / "manifest.json").read_text())
    weights.write_bytes(whole[:-4] + b"\0\0\0\1")
    done = together.python("-m", "pipeline", "repair", "results/small/saes/layer2/layer2/topk_k=8_seed=1/manifest.json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert weights.read_bytes() == whole
    assert json.loads((folder / "manifest.json").read_text()) == manifest
