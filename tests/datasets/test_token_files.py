"""Token files on disks that take less than they are given."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pipeline.artifacts.errors import UserError
from pipeline.datasets.token_files import Growing
from pipeline.study.datasets.text import Text


class Hesitant:
    """A file that takes at most 100 bytes at a time, as a file on a disk that is nearly full may."""

    def __init__(self, file):
        self.file = file

    def write(self, content):
        return self.file.write(content[:100])

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_what_a_write_leaves_over_is_written_next(tmp_path, dtype):
    growing = Growing(tmp_path / "a.npy", np.dtype(dtype))
    growing.file = Hesitant(growing.file)
    parts = [np.arange(333), np.zeros(0), np.arange(1000)]
    for part in parts:
        growing.add(part)
    growing.close()
    np.save(tmp_path / "saved.npy", np.concatenate(parts).astype(dtype))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_a_file_that_lost_its_end_is_not_closed_as_whole(tmp_path):
    growing = Growing(tmp_path / "a.npy", np.dtype(np.uint8))
    growing.add(np.zeros(1000))
    growing.file.truncate(500)
    with pytest.raises(UserError, match=r"^a\.npy: holds 500 bytes in .*, and 1,128 were written$"):
        growing.close()


STEP = """
import json, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
sys.argv = ["make_dataset", "--spec", sys.argv[1], "--out", sys.argv[2]]
import runpy
runpy.run_module("pipeline.steps.make_dataset", run_name="__main__")
"""


@pytest.mark.parametrize(("limit", "file"), [(500_000, "train.npy"), (3_000, "vocabulary.parquet")])
def test_a_disk_that_gets_full_is_one_line(tmp_path, project, limit, file):
    """The system's limit of a file's size acts like a full disk: a write is cut short, the next one fails."""
    count = 850 if file == "train.npy" else 2
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": "hello wor\n" * 100}) + "\n") * count)
    spec = json.dumps(Text.model_validate({"kind": "text", "files": [str(tmp_path / "a.jsonl")], "validation": 0}).settings())
    command = [sys.executable, "-B", "-c", STEP, spec, str(tmp_path / "out"), str(limit)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"error: {file}: could not be written in {tmp_path}"), done.stderr
    assert last.endswith("File too large") and "Traceback" not in done.stderr
    assert not (tmp_path / "out/manifest.json").exists()
