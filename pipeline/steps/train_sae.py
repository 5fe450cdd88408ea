"""Trains an SAE on a hook and publishes it beside its curve."""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numba
import torch

from pipeline.activations.store import ActivationStore
from pipeline.artifacts.errors import UserError
from pipeline.artifacts.publishing import Draft, publishing
from pipeline.code import code
from pipeline.saes import checkpoint
from pipeline.saes.run import Run
from pipeline.saes.train import Source, begun, kept_file, loader, log_sparsity, train
from pipeline.steps import command
from pipeline.study.names import module_name
from pipeline.training import processes
from pipeline.training.curve import Curve
from pipeline.training.device import device
from pipeline.training.snapshot import Snapshots
from pipeline.training.tracking import tracker


def main(spec: dict[str, Any], store: Path, validation: list[Path], out: Path) -> None:
    """Train one SAE on one hook of a store and publish it, with its curve, in SAELens' layout; on the store of the validation split, where
    one is given, it is measured meanwhile."""
    trained({out.name: spec}, store, validation, out.parent)


def trained(specs: dict[str, dict[str, Any]], store: Path, validation: list[Path], parent: Path) -> None:
    """Trains SAEs, by the names of their folders in `parent`, on one read of a store, and publishes them."""
    common = next(iter(specs.values()))
    processes.start(common["training"]["processes"])
    torch.set_num_threads(common["threads"])
    held_out = ActivationStore(validation[0]) if validation else None
    source = Source(ActivationStore(store), common["hook"], common.get("output", common["hook"]), held_out)
    inputs = {"activations": source.store.artifact} | ({"validation": held_out.artifact} if held_out else {})
    # The state of all stands in the folder of the first; a variant that was once trained alone may have one of its own.
    snapshots = [Snapshots(parent / name, _identity(specs, source)) for name in specs]
    with ExitStack() as stack:
        for one in snapshots if processes.first() else ():
            stack.enter_context(one.alone())
        runs = _runs(specs, source, snapshots[0], parent)
        if not runs:
            return
        for name, run in runs.items():
            with publishing(parent / name, "sae", specs[name], inputs) as draft:
                _write(draft, run, specs[name], source, partial(kept_file, snapshots[0].folder, name))
        for one in snapshots:
            one.remove()


def _runs(specs: dict[str, dict[str, Any]], source: Source, snapshots: Snapshots, parent: Path) -> dict[str, Run]:
    """The finished runs; none in all processes of a group but the first."""
    widths = [source.store[hook].shape[1] for hook in (source.hook, source.output)]
    with processes.joined() as group, ExitStack() as stack:
        built = {name: checkpoint.build(spec, *widths) for name, spec in specs.items()}
        batches = loader(source, next(iter(built.values()))[1])
        runs = {
            name: begun(sae, settings, source, batches, group, name if len(specs) > 1 else "") for name, (sae, settings) in built.items()
        }
        fresh = not snapshots.file.is_file()
        trackers = {
            name: stack.enter_context(tracker("/".join(["saes", *(parent / name).parts[-3:]]), spec, group.first, fresh))
            for name, spec in specs.items()
        }
        train(runs, source, batches, snapshots, trackers)
        return runs if group.first else {}


def _identity(specs: dict[str, dict[str, Any]], source: Source) -> str:
    """Digest of all that decides the runs: a snapshot of others is of no use."""
    modules = sorted({f"pipeline.saes.{module_name(spec['architecture'])}" for spec in specs.values()})
    stores = [store.artifact.hash for store in (source.store, source.validation) if store]
    parts = [specs, stores, code("pipeline.steps.train_sae", *modules), torch.__version__, numba.__version__, device().type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(draft: Draft, run: Run, spec: dict[str, Any], source: Source, kept_at: Callable[[int], Path]) -> None:
    """What a run leaves: the weights the study goes on with, the others beside them, those of stated steps, which lie at `kept_at` a step,
    the curve."""
    Curve(run.at.curve).write(draft.path("training.parquet"))
    kept, column = run.kept(), source.store[source.hook]
    first = torch.from_numpy(next(column.batches(checkpoint.PROBE_ROWS))).to(run.device)
    checkpoint.save(draft, kept, spec, log_sparsity(kept, column, run.settings.batch), first)
    if run.best is not None and run.at.best_step != run.at.last_step:
        name, weights = ("last", run.folded()) if run.settings.keep == "best" else ("best", run.folded(run.best))
        checkpoint.write_weights(draft.path(f"{name}.safetensors"), weights)
    for file in (kept_at(step) for step in run.settings.snapshots if step <= run.at.last_step):
        if not file.is_file():
            raise UserError(f"{file}: the weights of a stated step are missing; run this again")
        draft.path(f"snapshots/{file.name}").write_bytes(file.read_bytes())
    draft.facts |= run.facts()


if __name__ == "__main__":
    command.run(main)
