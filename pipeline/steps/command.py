"""The command line that every step has: paths as options, the settings as one JSON text.

A step is a function whose parameters are `spec` (settings), inputs (a Path or several) and `out` (the folder to publish in).
Its docstring is the help.
"""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import memory
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.run import run_facts
from pipeline.console import say


def run(step: Callable[..., None]) -> None:
    """Runs a step with the options of this process. A UserError ends it with one line and exit status 1."""
    parameters = inspect.signature(step).parameters
    parser = argparse.ArgumentParser(prog=f"python -m {step.__globals__['__spec__'].name}", description=inspect.getdoc(step))
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
        # Of several processes of one run, the first one speaks.
        sys.exit(1 if int(os.environ.get("RANK", 0)) else f"error: {error}")
    if int(os.environ.get("RANK", 0)):
        return
    facts = run_facts()
    say(f"done in {facts['wall_seconds']:.1f} s, {facts['peak_memory_bytes'] / 2**20:,.0f} MiB at most")


def _settings(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("a JSON object is expected")
    return value
