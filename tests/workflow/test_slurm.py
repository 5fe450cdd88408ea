"""The same study on this machine and through SLURM gives the same bytes; and Snakemake knows every key of the profiles."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from . import slurm_cluster
from .conftest import ROOT, Project

STUDY = """\
name: small
datasets:
  pointer: {kind: pointer, train: 400, validation: 100, test: 100}
models:
  mlp:
    architecture: mlp
    dataset: pointer
    hidden: [32, 64, 32]
    threads: 2
    training: {epochs: 2, batch: 100, lr: 0.01, validate_every: 1}
activations:
  layer2: {model: mlp, hooks: [layer2], threads: 1}
saes:
  relu: {architecture: relu, activations: layer2, latents: 64, training: {epochs: 2, batch: 100}}
  topk: {architecture: topk, activations: layer2, latents: 64, k: 8, training: {epochs: 2, batch: 100}}
probe:
  samples:
    - {input: [8, 9, 5, 1, 3, 2, 9, 4, 7, 1], expected: 8}
"""
ARTIFACTS = {"datasets": 1, "models": 1, "activations": 2, "saes": 2, "evaluation": 2, "features": 2, "probe": 2, "report": 1}
# The jobs that make them, by rule; `all` is none, since it runs where Snakemake does.
JOBS = {
    "make_dataset": 1,
    "train_model": 1,
    "harvest": 2,
    "seal_store": 2,
    "train_sae": 2,
    "evaluate": 2,
    "describe_features": 2,
    "probe": 2,
    "write_report": 1,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    if missing := slurm_cluster.missing():
        pytest.skip(f"no SLURM here: {', '.join(missing)} not found (Debian and Ubuntu: apt-get install slurm-wlm munge)")
    with slurm_cluster.running() as cluster:
        yield cluster


@pytest.mark.slow
def test_through_slurm_the_bytes_are_the_same(tmp_path: Path, cluster: slurm_cluster.Cluster):
    code, study = tmp_path / "code", tmp_path / "study.yaml"
    code.mkdir()
    Project(code)  # a copy, so that no edit of the project falls between the two runs
    study.write_text(STUDY)

    def run(folder: Path, *options: str) -> str:
        """Runs the study in a folder; what Snakemake printed."""
        where = ("--snakefile", code / "Snakefile", "--directory", folder, "--configfile", study)
        command = [sys.executable, "-m", "snakemake", *where, *options]
        done = subprocess.run(
            command, cwd=tmp_path, env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3600
        )
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    # Asks after 1 s and again after 11 s more: most jobs here end between the two.
    slurm = ("--workflow-profile", str(code / "profiles/slurm"), "--slurm-init-seconds-before-status-checks", "1")
    run(tmp_path / "here", "--cores", "2")
    run(tmp_path / "there", *slurm)

    expected = published(tmp_path / "here")
    assert Counter(Path(path).parts[2] for path in expected if path.endswith("/manifest.json")) == ARTIFACTS
    assert published(tmp_path / "there") == expected

    through_slurm = {f"COMPLETED {rule}": count for rule, count in JOBS.items()}
    assert jobs(cluster) == through_slurm

    assert "Nothing to be done" in run(tmp_path / "there", *slurm)
    assert jobs(cluster) == through_slurm


def published(folder: Path) -> dict[str, str]:
    """Digest of every manifest in a folder of results, and of every file that one lists, by path."""
    manifests = sorted(folder.glob("results/**/manifest.json"))
    listed = [manifest.parent / name for manifest in manifests for name in json.loads(manifest.read_text())["files"]]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*manifests, *listed]}


def jobs(cluster: slurm_cluster.Cluster) -> Counter:
    """All jobs that SLURM has had: how they ended, and the rule, which the plugin notes in a job's comment."""
    lines = cluster.ask("squeue", "--states=all", "--noheader", "--format=%T %k")
    return Counter(re.sub(r" rule_(\w+?)(_wildcards_.*)?$", r" \1", line) for line in lines)


@pytest.mark.parametrize("profile", sorted(ROOT.glob("profiles/*/profile.yaml")), ids=lambda file: file.parent.name)
def test_snakemake_knows_every_key_of_a_profile(profile: Path):
    command = [sys.executable, "-m", "snakemake", "--help"]
    shown = subprocess.run(command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=True).stdout
    # An option starts its line after two spaces, any text about it further in.
    options = {name for line in re.findall(r"^  (-.+)", shown, re.MULTILINE) for name in re.findall(r"--([\w-]+)", line)}
    assert set(yaml.safe_load(profile.read_text())) <= options
