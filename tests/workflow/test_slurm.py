"""The same study on this machine and through SLURM: the same bytes. And profiles whose keys Snakemake knows."""

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
import slurm_cluster
import yaml

ROOT = Path(__file__).parents[2]

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
    training: {epochs: 4, batch: 100, lr: 0.01, validate_every: 2}
activations:
  layer2: {model: mlp, hooks: [layer2], threads: 1}
saes:
  relu: {architecture: relu, activations: layer2, latents: 64, training: {epochs: 2, batch: 100, memory_mb: 200}}
  topk: {architecture: topk, activations: layer2, latents: 64, k: 8, training: {epochs: 2, batch: 100, memory_mb: 200}}
probe:
  samples:
    - {input: [8, 9, 5, 1, 3, 2, 9, 4, 7, 1], expected: 8}
"""

# Jobs of the study by rule, `all` left out: it runs where Snakemake does.
JOBS = Counter(
    make_dataset=1, train_model=1, harvest=2, seal_store=2, train_sae=2, evaluate=2, describe_features=2, probe=2, write_report=1
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[slurm_cluster.Cluster]:
    if missing := slurm_cluster.missing():
        pytest.skip(f"no SLURM here: {', '.join(missing)} not found (Debian and Ubuntu: apt-get install slurm-wlm munge)")
    with slurm_cluster.running() as cluster:
        yield cluster


def run(folder: Path, *options: str, env: dict[str, str]) -> str:
    """Runs the study in a folder; what Snakemake printed."""
    folder.mkdir(exist_ok=True)
    study = folder.parent / "study.yaml"
    study.write_text(STUDY)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder, "--configfile", study, *options]
    done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    return done.stdout


def published(folder: Path) -> dict[str, str]:
    """Digest of every manifest in a folder of results and of every file that it lists, by path."""
    manifests = sorted(folder.glob("results/**/manifest.json"))
    listed = [manifest.parent / name for manifest in manifests for name in json.loads(manifest.read_text())["files"]]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in [*manifests, *listed]}


@pytest.mark.slow
def test_through_slurm_the_bytes_are_the_same(tmp_path: Path, cluster: slurm_cluster.Cluster) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    run(here, "--cores", "2", env=cluster.env)
    # Questions more often than a real cluster should be asked: the shortest time in which most of these jobs end.
    slurm = ("--workflow-profile", str(ROOT / "profiles" / "slurm"), "--slurm-init-seconds-before-status-checks", "6")
    run(there, *slurm, env=cluster.env)

    expected = published(here)
    assert Counter(path.split("/")[2] for path in expected if path.endswith("manifest.json")) == Counter(
        datasets=1, models=1, activations=2, saes=2, evaluation=2, features=2, probe=2, report=1
    )
    assert published(there) == expected

    def jobs() -> Counter:
        """SLURM's jobs, by the rule that the plugin notes as a comment, with how they ended."""
        lines = cluster.ask("squeue", "--states=all", "--noheader", "--format=%T %k")
        return Counter(re.sub(r" rule_(\w+?)(_wildcards_.*)?$", r" \1", line) for line in lines)

    through_slurm = Counter({f"COMPLETED {rule}": count for rule, count in JOBS.items()})
    assert jobs() == through_slurm

    assert "Nothing to be done" in run(there, *slurm, env=cluster.env)
    assert jobs() == through_slurm


@pytest.mark.parametrize("profile", sorted(ROOT.glob("profiles/*/profile.yaml")), ids=lambda path: path.parent.name)
def test_snakemake_knows_every_key_of_a_profile(profile: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "--help"]
    shown = subprocess.run(command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(?<!\S)\[?--([\w-]+)", shown))
    assert set(yaml.safe_load(profile.read_text())) - known == set()
