"""What a person sees when one of several processes of a run ends badly: one line, once."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

STEP = '''
import os, signal, time
from pathlib import Path
from pipeline.artifacts.errors import UserError
from pipeline.steps import command
from pipeline.training import processes

def main(out: Path) -> None:
    """Ends as {how} says."""
    processes.start(2)
    with processes.joined() as group:
        if "{how}" == "told by both" or group.rank == 1:
            if "{how}" == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("nothing to read; give `rows`")
        if "{how}" == "killed":
            time.sleep(1000)
        group.said(1.0)  # waits for the other one

if __name__ == "__main__":
    command.run(main)
'''


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("told by both", "error: nothing to read; give `rows`"),
        ("told by the second", "error: nothing to read; give `rows`"),
        ("killed", "error: process 1 of the run was ended by SIGKILL"),
    ],
)
def test_a_fault_is_one_line(project, tmp_path, how, line):
    (tmp_path / "ends_badly.py").write_text(STEP.replace("{how}", how))
    done = subprocess.run(
        [sys.executable, "-m", "ends_badly", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{project}"},
    )  # fmt: skip
    assert done.stderr.splitlines() == [line]
    assert done.stdout == ""
    assert done.returncode == 1
