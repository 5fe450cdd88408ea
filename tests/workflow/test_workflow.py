"""The workflow as a person meets it: the same bytes twice, what a wrong study says, steps by hand, Snakemake's own report."""

import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import STUDY, Project

pytestmark = pytest.mark.slow

APART = {"run.json", "times.js", "timing.parquet"}
"""Files that hold times and hosts."""


def contents(project: Project) -> dict[str, bytes]:
    root = project.folder / "results"
    files = (path for path in root.rglob("*") if path.is_file() and "logs" not in path.parts and path.name not in APART)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_two_runs_in_different_folders_leave_equal_bytes(project: Project, tmp_path: Path):
    again = Project(tmp_path / "another" / "folder with a space")
    again.run()
    first, second = contents(project), contents(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert sum(name.endswith("manifest.json") for name in first) == 1 + 1 + 2 + 4 * 4 + 1


def test_every_artifact_can_be_walked_back_to_its_dataset(project: Project):
    manifests = [json.loads(path.read_text()) for path in project.folder.glob("results/small/**/manifest.json")]
    by_hash = {manifest["hash"]: manifest for manifest in manifests}

    def roots(manifest: dict) -> set[str]:
        return {manifest["kind"]} if not manifest["inputs"] else set().union(*(roots(by_hash[h]) for h in manifest["inputs"].values()))

    assert all(roots(manifest) == {"dataset"} for manifest in manifests)
    report = next(manifest for manifest in manifests if manifest["kind"] == "report")
    assert {by_hash[h]["kind"] for h in report["inputs"].values()} == {"dataset", "model", "sae", "evaluation", "features", "probe"}


def test_repair_refuses_a_study_that_asks_for_another_artifact(project: Project, tmp_path: Path):
    """An artifact that an overlay made is not made again from the study without it."""
    overlay = tmp_path / "more.yaml"
    overlay.write_text("saes: {fixed: {k: 5}}\n")
    manifest = "results/small/saes/layer2/layer2/fixed/manifest.json"
    done = project.python("-m", "pipeline", "repair", manifest, "--configfile", "config.yaml", str(overlay))
    assert done.returncode == 1
    assert "made with other settings" in done.stderr
    assert "Traceback" not in done.stderr


def test_activations_that_no_sae_uses_are_recorded_too(project: Project, tmp_path: Path):
    overlay = tmp_path / "more.yaml"
    overlay.write_text("activations: {other: {model: mlp, hooks: [layer1], splits: [test]}}\n")
    done = project.snakemake("-n", "--configfile", "config.yaml", str(overlay))
    assert "Harvesting other over test" in done.stdout


def test_a_wrong_study_says_one_line_per_fault_and_no_traceback(tmp_path: Path):
    project = Project(tmp_path / "project")
    wrong = {**STUDY, "saes": {"topk": {"architecture": "top_k", "activations": "layer3"}}}
    project.write_study(wrong)
    done = project.snakemake("-n")
    assert done.returncode == 1
    lines = done.stderr.split("the study cannot run:\n")[1].splitlines()
    assert [line.split(": ", 2)[1] for line in lines] == ["saes.topk.architecture", "saes.topk.activations"]
    assert "did you mean 'topk'?" in lines[0]
    assert "did you mean 'layer2'?" in lines[1]
    assert "Traceback" not in done.stderr + done.stdout


def test_an_overlay_changes_what_it_names(project: Project, tmp_path: Path):
    overlay = tmp_path / "more.yaml"
    overlay.write_text("saes: {topk: {sweep: {k: [4, 8, 16]}}}\n")
    done = project.snakemake("-n", "--configfile", "config.yaml", str(overlay))
    assert done.returncode == 0, done.stderr
    assert "topk_k=16" in done.stdout
    assert "topk_k=8/manifest.json --out" not in done.stdout


def test_nested_values_on_the_command_line_arrive_as_numbers(project: Project):
    done = project.snakemake("-n", "--config", 'saes={"fixed": {"k": 5}}')
    assert done.returncode == 0, done.stderr
    assert '"k":5' in done.stdout
    wrong = project.snakemake("-n", "--config", 'saes={"fixed": {"k": "five"}}')
    assert wrong.returncode == 1
    assert "saes.fixed.k: a number is expected; found 'five'" in wrong.stderr


def test_the_printed_command_runs_by_hand(project: Project, tmp_path: Path):
    done = project.snakemake("-n", "--forcerun", "results/small/evaluation/layer2/layer2/relu/manifest.json")
    command = next(line for line in done.stdout.splitlines() if "Shell command: python -m pipeline.steps.evaluate" in line)
    words = shlex.split(command.split("Shell command: ")[1].split(" > ")[0])
    words[words.index("--out") + 1] = str(tmp_path / "by_hand")
    environment = {**os.environ, "PYTHONPATH": str(project.folder)}
    ran = subprocess.run([sys.executable, *words[1:]], cwd=project.folder, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "evaluate: 100 rows in" in ran.stderr
    made = (tmp_path / "by_hand/metrics.json").read_bytes()
    assert made == (project.folder / "results/small/evaluation/layer2/layer2/relu/metrics.json").read_bytes()


@pytest.mark.parametrize(
    "step", sorted(path.stem for path in Path("pipeline/steps").glob("*.py") if path.stem not in ("__init__", "command"))
)
def test_each_step_has_help(step: str, monkeypatch, capsys):
    """As `python -m pipeline.steps.<step> --help` shows it, in this process."""
    monkeypatch.setattr(sys, "argv", [step, "--help"])
    monkeypatch.delitem(sys.modules, f"pipeline.steps.{step}", raising=False)  # to be run, not taken as it is
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"pipeline.steps.{step}", run_name="__main__", alter_sys=True)
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m pipeline.steps.{step} ")
    assert "--spec JSON" in shown
    assert "--out FOLDER" in shown


@pytest.mark.parametrize("step", ["make_dataset", "seal_store", "write_report"])
def test_steps_that_need_no_torch_do_not_import_it(step: str):
    code = f"import sys, pipeline.steps.{step}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_snakemakes_own_report_has_captions_categories_and_labels(project: Project, tmp_path: Path):
    page = tmp_path / "report.html"
    project.run("--report", str(page))
    text = page.read_text()
    for words in ("Sparsity (L0) against fraction of variance explained", "Figures", "L0 and FVE", "frontier.svg", "saes.csv"):
        assert words in text, words


def test_the_page_needs_nothing_from_elsewhere(project: Project):
    page = (project.folder / "results/small/report/index.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    assert page.count("data:image/svg+xml") == 4


def test_running_a_finished_study_still_says_where_to_look(project: Project):
    done = project.python("-m", "pipeline", "run")
    assert done.returncode == 0, done.stderr
    assert "results/small/report/index.html" in done.stdout
    assert "duration" in done.stdout
