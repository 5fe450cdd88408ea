"""The command line that every step has: paths as options, the settings as one JSON text.

A step is a function whose parameters are `spec` (settings), inputs (a Path or several) and `out` (the folder to publish in).
Its docstring is the help.
"""

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pipeline import memory
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.run import run_facts
from pipeline.console import say

LEFT = "TORCHELASTIC_ERROR_FILE"
"""The variable by which torchrun says where each process, in a folder of its own, may leave what ended it."""


def run(step: Callable[..., None]) -> None:
    """Runs a step with the options of this process. A UserError ends it with one line and exit status 1."""
    parameters = inspect.signature(step).parameters
    parser = argparse.ArgumentParser(
        prog=f"python -m {inspect.unwrap(step).__globals__['__spec__'].name}", description=inspect.getdoc(step)
    )
    for name, parameter in parameters.items():
        option = f"--{name.replace('_', '-')}"
        if name == "spec":
            parser.add_argument(
                option, required=True, type=_settings, metavar="JSON", help="settings of the step, as Snakemake prints them"
            )
        elif parameter.annotation == list[Path]:
            parser.add_argument(option, required=True, nargs="*", type=Path, metavar="MANIFEST", help=f"manifests: {name}")
        else:
            about = "folder to publish in" if name == "out" else f"manifest: {name}"
            optional = parameter.default is not inspect.Parameter.empty
            parser.add_argument(option, required=not optional, type=Path, metavar="FOLDER" if name == "out" else "MANIFEST", help=about)
    options = vars(parser.parse_args())
    memory.keep()
    try:
        step(**options)
    except UserError as error:
        _end(str(error))
    except Exception:
        if _ended_by_another():
            os._exit(1)  # on the way out of Python, threads that still wait for the other process would end this one with words of C++
        raise
    if int(os.environ.get("RANK", 0)):
        return
    facts = run_facts()
    say(f"done in {facts['wall_seconds']:.1f} s, {facts['peak_memory_bytes'] / 2**20:,.0f} MiB at most")


def _end(line: str) -> NoReturn:
    """Says why a step cannot go on. One of several processes of a run leaves its line to the one that started them, which ends the others
    and says it once (training/launch.py)."""
    file = os.environ.get(LEFT)
    if not file:
        sys.exit(f"error: {line}")
    Path(file).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    os._exit(1)  # what is left is connections, which would close before the others can know why


def _ended_by_another() -> bool:
    """Whether another process of this run has said why it cannot go on: what fails here then is the connection to it."""
    file = os.environ.get(LEFT)
    return file is not None and any(Path(file).parents[1].glob(f"*/{Path(file).name}"))


def _settings(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object is expected")
    return value
