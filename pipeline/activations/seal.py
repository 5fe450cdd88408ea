"""Makes an artifact of a harvested store: checks every shard, writes the group's attributes, publishes the manifest."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.activations import store
from pipeline.artifacts.manifest import Artifact, entry
from pipeline.artifacts.manifest import seal as publish


def seal(folder: Path, spec: dict[str, Any], inputs: dict[str, Artifact]) -> None:
    """Raises DamagedArtifact when a shard is not as it was written."""
    part = json.loads((folder / store.PART).read_text())
    written = Artifact(folder, {"files": part["files"]})
    for name in part["files"]:
        written.check(name)
    rows = part["rows"]
    hooks = {}
    for hook, width in part["widths"].items():
        mean = np.sum([np.array(sums[hook]["sum"]) for sums in part["sums"]], axis=0) / rows
        square = sum(sums[hook]["square"] for sums in part["sums"]) / rows
        about = part["identity"]["meanings"][hook]
        hooks[hook] = {"about": about, "width": width, "mean": mean.tolist(), "mean_squared_norm": square}
    of = {key: part["identity"][key] for key in ("model", "dataset", "split")}
    store.set_attributes(folder, {**of, "dtype": "float32", "rows": rows, "hooks": hooks})
    group = f"{store.STORE}/zarr.json"
    files = {**part["files"], group: entry(folder / group)}
    facts = {"rows": rows, "hooks": part["widths"]}
    publish(folder, "activations", spec, inputs, files, facts)
