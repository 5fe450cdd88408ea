"""Trains variants of an SAE together, on one read of the store, and publishes each."""

from pathlib import Path
from typing import Any

from pipeline.steps import command
from pipeline.steps.train_sae import trained


def main(spec: dict[str, dict[str, Any]], store: Path, validation: list[Path], out: Path) -> None:
    """Train SAEs on one hook of a store, on one read of it. `spec` holds the settings of each by the name of its folder in `out`."""
    trained(spec, store, validation, out)


if __name__ == "__main__":
    command.run(main)
