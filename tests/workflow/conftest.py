"""A copy of the project with a small study, so that tests can change both."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[2]
PARTS = ("Snakefile", "rules", "pipeline", "profiles", "docs")

STUDY = {
    "name": "small",
    "datasets": {"pointer": {"kind": "pointer", "train": 400, "validation": 100, "test": 100}},
    "models": {
        "mlp": {
            "architecture": "mlp",
            "dataset": "pointer",
            "hidden": [16, 32, 16],
            "threads": 1,
            "training": {"epochs": 2, "batch": 100, "validate_every": 1},
        }
    },
    "activations": {"layer2": {"model": "mlp", "hooks": ["layer2"], "chunk_rows": 64, "shard_rows": 128, "threads": 1}},
    "saes": {
        "relu": {"architecture": "relu", "activations": "layer2", "latents": 64, "training": {"epochs": 2, "batch": 100}},
        "fixed": {"architecture": "topk", "activations": "layer2", "latents": 64, "k": 4, "training": {"epochs": 2, "batch": 100}},
        "topk": {
            "architecture": "topk",
            "activations": "layer2",
            "latents": 64,
            "training": {"epochs": 2, "batch": 100},
            "sweep": {"k": [4, 8]},
        },
    },
    "probe": {"samples": [{"input": [8, 9, 5, 1, 3, 2, 9, 4, 7, 1], "expected": 8}]},
}

# Says which jobs would run, one per line: the rule, and the SAE it is about where there is one.
PLANNED = """
import logging
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings
from snakemake_interface_logger_plugins.common import LogEvent

class Jobs(logging.Handler):
    def emit(self, record):
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            print(record.rule_name, (record.wildcards or {}).get("sae", ""))

with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Snakefile"), workdir=Path("."))
    api.logger_manager.logger.addHandler(Jobs())
    workflow.dag(DAGSettings()).execute_workflow(executor="dryrun")
"""


class Project:
    """A copy of the project in a folder of its own."""

    def __init__(self, folder: Path, like: Path | None = None) -> None:
        """A fresh one, or one that is `like` another, results and all."""
        self.folder = folder
        if like:
            shutil.copytree(like, folder, symlinks=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / part)
        self.write_study(STUDY)

    def write_study(self, study: dict) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def python(self, *arguments: str) -> subprocess.CompletedProcess:
        """`python ...` in the project's folder, without the developer's environment."""
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=3600)

    def snakemake(self, *options: str) -> subprocess.CompletedProcess:
        return self.python("-m", "snakemake", "--cores", "2", *options)

    def run(self, *options: str) -> None:
        done = self.snakemake(*options)
        assert done.returncode == 0, done.stderr[-4000:]

    def planned(self) -> set[str]:
        """Jobs that would run: "rule" or "rule sae"."""
        done = self.python("-c", PLANNED)
        assert done.returncode == 0, done.stderr[-4000:]
        return {line.strip() for line in done.stdout.splitlines()} - {"all"}


@pytest.fixture(scope="session")
def project(tmp_path_factory, worker_id: str) -> Project:
    """The small study, finished; run once, by the first of pytest's processes that needs it. The others have a copy, times kept."""
    own = tmp_path_factory.mktemp("project") / "own"
    shared = (tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent) / "finished"
    with FileLock(f"{shared}.lock"):
        if not shared.is_dir():
            made = Project(own)
            made.run()
            shutil.copytree(own, own.with_name("beside"), symlinks=True)
            own.with_name("beside").rename(shared)
            return made
    return Project(own, shared)
