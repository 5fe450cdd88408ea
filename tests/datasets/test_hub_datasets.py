"""Datasets and tokenizers of the Hugging Face hub: local folders of one, and what is said when the hub is out of reach."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.datasets import hub, text
from pipeline.study.datasets.text import Text

TEXTS = [f"story number {i}" for i in range(400)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is kept between tests, and nothing is asked of the network."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """A local dataset in two files, of parquet or of jsonl."""

    def folder(form):
        found = tmp_path / form
        found.mkdir()
        for at in range(2):
            some = TEXTS[200 * at : 200 * at + 200]
            file = found / f"train-{at}.{form}"
            if form == "parquet":
                pq.write_table(pa.table({"text": some, "n": range(200)}), file)
            else:
                file.write_text("".join(json.dumps({"text": one, "n": 1}) + "\n" for one in some))
        return found

    return folder


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_local_folder_gives_what_its_files_give(make, folder, form):
    found = folder(form)
    streamed = make(text, "streamed", kind="text", hub=str(found), seed=1)
    read = make(text, "read", kind="text", files=[str(found / f"*.{form}")], seed=1)
    assert {name: entry["sha256"] for name, entry in streamed.files.items()} == {
        name: entry["sha256"] for name, entry in read.files.items()
    }
    assert streamed.facts["sources"] == {str(file): sha256(file) for file in sorted(found.iterdir())}
    few = make(text, "few", kind="text", hub=str(found), documents=50, tokenizer={"kind": "bpe", "vocabulary": 300})
    assert sum(few.facts["documents"].values()) == 50


def test_splits_of_parquet_can_be_joined(make, folder):
    found = folder("parquet")
    (found / "train-1.parquet").rename(found / "test-0.parquet")
    made = {split: make(text, split, kind="text", hub=str(found), hub_split=split, validation=0) for split in ("train", "train+test")}
    assert [one.facts["documents"]["train"] for one in made.values()] == [200, 400]


MEASURE = """
import json, sys
from pathlib import Path
from pipeline.steps.make_dataset import main
main(json.loads(sys.argv[1]), Path(sys.argv[2]))
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)
"""


def test_memory_does_not_grow_with_a_row_group(tmp_path, project):
    """A file that is one row group, of 4 MB and of 64 MB of text, beside a column nobody asked for: at most 20 MiB more."""
    peaks = []
    for rows in (5_000, 80_000):
        found = tmp_path / str(rows)
        found.mkdir()
        column = pa.array([f"{i}" + "Once upon a time there was a little girl. She liked to play outside. " * 12 for i in range(rows)])
        pq.write_table(pa.table({"text": column, "again": column}), found / "train.parquet", row_group_size=rows)
        spec = Text.model_validate({"kind": "text", "hub": str(found)}).settings()
        command = [sys.executable, "-c", MEASURE, json.dumps(spec), str(tmp_path / "out")]
        peaks.append(float(subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 20, peaks


def test_what_a_folder_does_not_have_is_named(make, folder, tmp_path):
    found = folder("parquet")
    with pytest.raises(UserError, match=r"parquet: has no column 'body' \(columns: text, n\)"):
        make(text, kind="text", hub=str(found), column="body")
    with pytest.raises(UserError, match="row 1: column 'n' is int64, and text is expected"):
        make(text, kind="text", hub=str(found), column="n")
    for settings in ({"hub_split": "nowhere"}, {"subset": "nowhere"}):
        with pytest.raises(UserError, match="parquet: the dataset could not be read: ") as caught:
            make(text, kind="text", hub=str(found), **settings)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the dataset could not be read"):
        make(text, kind="text", hub=str(tmp_path / "empty"))


SCRIPT = """
import json, sys
from pathlib import Path
from pipeline.artifacts.errors import UserError
from pipeline.steps.make_dataset import main
for settings in json.loads(sys.argv[1]):
    try:
        main({"kind": "text", **settings}, Path(sys.argv[2]))
    except UserError as error:
        print(error)
"""


def test_a_hub_out_of_reach_is_one_clear_line(project, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "a.txt").write_text("some text " * 30)
    wanted = [{"hub": "owner/stories"}, {"files": [str(tmp_path / "a.txt")], "tokenizer": {"kind": "hub", "name": "owner/tokens"}}]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(wanted), str(tmp_path / "out")], cwd=project, capture_output=True, text=True, check=True
    )
    dataset, tokenizer = run.stdout.splitlines()
    assert dataset.startswith("owner/stories: the dataset could not be read from the Hugging Face hub: ")
    assert tokenizer.startswith("owner/tokens: the tokenizer could not be fetched from the Hugging Face hub: ")
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_commit_of_a_dataset_is_looked_up_once_and_kept(make, folder, monkeypatch):
    """The hub played by a local folder."""
    import datasets
    import huggingface_hub

    asked = []
    found, load = folder("parquet"), datasets.load_dataset_builder

    class Api:
        def dataset_info(self, name, revision):
            asked.append((name, revision))
            return type("Info", (), {"sha": "c0ffee"})

    def load_dataset_builder(name, subset, revision):
        asked.append((name, subset, revision))
        return load(str(found))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    made = make(text, kind="text", hub="owner/stories", revision="main", subset="en", tokenizer={"kind": "bpe", "vocabulary": 300})
    assert made.facts["sources"] == {"hub:owner/stories": "c0ffee"}
    assert sum(made.facts["documents"].values()) == 400
    assert asked == [("owner/stories", "main"), *[("owner/stories", "en", "c0ffee")] * 2]


def test_a_fault_in_our_own_code_is_no_fault_of_the_hub():
    assert not issubclass(TypeError, hub.faults()) and not issubclass(AssertionError, hub.faults())
