"""The artifacts of a small study, with numbers made up so that they can be found again on the page."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.manifest import MANIFEST
from pipeline.artifacts.publishing import publishing
from pipeline.report.results import Results, load
from pipeline.study.graph import Graph
from pipeline.study.study import parse
from pipeline.training.curve import Curve

STUDY = {
    "name": "small",
    "datasets": {"text": {"kind": "text", "files": ["a.txt"]}},
    "models": {"gpt": {"architecture": "gpt", "dataset": "text", "layers": 1, "width": 8, "heads": 2}},
    "activations": {"mlp": {"model": "gpt", "hooks": ["blocks.0.mlp_out"]}},
    "saes": {
        "topk": {"architecture": "topk", "activations": "mlp", "latents": 64, "k": 4, "sweep": {"seed": [0, 1]}},
        "dead": {"architecture": "relu", "activations": "mlp", "latents": 64},
    },
}
FVE = {"topk_seed=0": 0.25, "topk_seed=1": 0.75, "dead": 0.125}
FACTS = {
    "width": 8, "out": 8, "latents": 64, "rows_seen": 250_000, "steps": 2, "lr": 0.1, "dead": 0.25, "dead_window": 50_000, "resampled": 0,
    "wrong": None, "kept": "last", "kept_step": 2, "validation_l0": 4.5,
}  # fmt: skip
"""What a run says of itself."""
TOKENS = ["<b>", " lord", "\n", "&amp;"]


def metrics(fve: float) -> dict[str, Any]:
    """What evaluation says of an SAE."""
    return {
        "rows": 4321, "flagged": 0, "left_out": 0, "positions": 8765, "split": "validation",
        "fve": fve, "mse": 7.5, "mse_per_dim": 0.9375, "relative_reconstruction_bias": 0.99,
        "l0": 3.25, "l0_above": 2.5, "active_above": 0.01, "dead": 0.5, "loss_clean": 1.0, "loss_sae": 1.5, "loss_zero": 4.0,
        "loss_mean": 3.0, "loss_score_zero": 0.8125, "loss_score_mean": None,
        "density": {"log10_edges": [-2.0, -1.0, 0.0], "counts": [3, 4], "never": 57},
    }  # fmt: skip


def latents(alive: int) -> pa.Table:
    """64 latents; the first so many fire, the last of them in 1 % of rows and each one before in 1 % more."""
    density = [(alive - m) / 100 if m < alive else 0.0 for m in range(64)]
    rows = [
        {
            "latent": m, "density": d, "mean": d * 2.0, "mean_active": 2.0 if d else None, "max": 5.0 if d else 0.0,
            "selectivity": 2.5 / d if d else None,
        }
        for m, d in enumerate(density)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def contexts(alive: int) -> pa.Table:
    """Four contexts of each latent that fires; it is strongest on the second token."""
    rows = [
        {"latent": m, "rank": rank, "activation": 4.0 - rank / 2, "sequence": rank, "position": 1, "tokens": TOKENS,
         "activations": [1.0, 4.0 - rank / 2, 0.0, 0.0]}
        for m in range(alive)
        for rank in range(4)
    ]  # fmt: skip
    numbers = {"latent": pa.int32(), "rank": pa.int32(), "activation": pa.float32(), "sequence": pa.int64(), "position": pa.int32()}
    schema = pa.schema({**numbers, "tokens": pa.list_(pa.string()), "activations": pa.list_(pa.float32())})
    return pa.Table.from_pylist(rows, schema)


def curve(draft, **columns: list[float]) -> None:
    """A training curve with these columns."""
    found = Curve()
    for values in zip(*columns.values(), strict=True):
        found.add(**dict(zip(columns, values, strict=True)))
    found.write(draft.path("training.parquet"))


@pytest.fixture(scope="session")
def graph() -> Graph:
    return Graph(parse(STUDY))


@pytest.fixture(scope="session")
def results(tmp_path_factory, graph) -> Results:
    """Everything the report of the study is made of."""
    return publish(tmp_path_factory.mktemp("report"), graph)


@pytest.fixture(scope="session")
def results_with_probe(tmp_path_factory, graph) -> Results:
    """The same with one sample followed through each SAE; a latent counts as active above another number than in evaluation."""
    return publish(tmp_path_factory.mktemp("probed"), graph, probed=True)


TRANSCODERS = {
    **STUDY,
    "activations": {"mlp": {"model": "gpt", "hooks": ["blocks.0.mlp_hidden", "blocks.0.mlp_out"]}},
    "saes": {
        name: {
            "architecture": "topk", "activations": "mlp", "hooks": ["blocks.0.mlp_hidden"], "outputs": ["blocks.0.mlp_out"],
            "latents": 64, "k": 4, "skip": name == "skip",
        }
        for name in ("plain", "skip")
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def results_with_transcoders(tmp_path_factory) -> Results:
    """Two transcoders, of which one had to be warned of."""
    facts = {"skip": {"wrong": "L0 did not fall <under> the penalty", "resampled": 17, "kept": "best", "kept_step": 750}}
    return publish(tmp_path_factory.mktemp("transcoders"), Graph(parse(TRANSCODERS)), facts=facts)


@pytest.fixture
def results_without_saes(tmp_path) -> Results:
    return publish(tmp_path, Graph(parse({key: value for key, value in STUDY.items() if key not in ("activations", "saes")})))


SAMPLE = {"input": [1.0, 2.5], "expected": 3.0, "output": 2.98763, "active": 7, "top": [{"latent": 5, "activation": 1.25}]}


def publish(root: Path, graph: Graph, probed: bool = False, facts: dict[str, dict[str, Any]] | None = None) -> Results:
    """Publishes made-up artifacts where the graph says they lie, and reads them as the report does. `facts` are of SAEs by name; those have
    snapshots too."""
    for folder in graph.everything()["dataset"]:
        with publishing(root / folder, "dataset", {"kind": "text", "files": ["a.txt"]}, {}):
            pass
    for folder in graph.everything()["model"]:
        with publishing(root / folder, "model", {"architecture": "gpt", "seed": 0}, {}) as draft:
            draft.facts["parameters"] = 98765
            curve(draft, step=[1.0, 2.0], lr=[0.1, 0.2], train_loss=[3.0, 2.0], validation_loss=[3.5, 2.5])
            draft.write_json("metrics.json", {"train": {"loss": 2.0, "positions": 77}, "validation": {"loss": 2.5, "positions": 33}})
    for folder in graph.everything()["sample"]:
        with publishing(root / folder, "sample", {"seed": 0}, {}) as draft:
            draft.write_json("sample.json", {"prompt": "", "text": "goes on", "ids": [1]})
    for folder in graph.everything()["sae"]:
        name = folder.rpartition("/")[2]
        seed = int(name[-1]) if "seed" in name else 0
        with publishing(root / folder, "sae", {**graph.spec_at(folder), "lr": "<i>"}, {}) as draft:
            draft.facts |= FACTS | {"validation_fve": 0.5 + seed / 4} | (facts or {}).get(name, {})
            curve(
                draft, step=[1.0, 2.0], lr=[0.1, 0.1], loss=[2.0, 1.0], fve=[0.1, FVE.get(name, 0.5)], l0=[5.0, 4.0], dead=[0.0, 0.5],
                validation_fve=[None, FVE.get(name, 0.5)], validation_l0=[None, 4.5],
            )  # fmt: skip
            for step in (500, 20, 1000) if name in (facts or {}) else ():
                draft.path(f"snapshots/step_{step}.safetensors").write_bytes(b"weights")
    for folder in graph.everything()["evaluation"]:
        with publishing(root / folder, "evaluation", {}, {}) as draft:
            draft.write_json("metrics.json", metrics(FVE.get(folder.rpartition("/")[2], 0.5)))
    for folder in graph.everything()["features"]:
        alive = 0 if folder.endswith("dead") else 20
        with publishing(root / folder, "features", {"split": "train"}, {}) as draft:
            pq.write_table(latents(alive), draft.path("latents.parquet"))
            pq.write_table(contexts(alive), draft.path("contexts.parquet"))
    probes = [folder.replace("/saes/", "/probe/") for folder in graph.everything()["sae"] if probed]
    for folder in probes:
        with publishing(root / folder, "probe", {"active_above": 0.75}, {}) as draft:
            draft.write_json("probe.json", [SAMPLE])
    stages = ("dataset", "model", "sample", "sae", "evaluation", "features")
    return load(*([root / folder / MANIFEST for folder in some] for some in (*(graph.everything()[stage] for stage in stages), probes)))


UNITS = {"tokens": 500, "types": 60, "hooks": ["mlp_hidden", "mlp_out"], "inactive_below": 0.01}
UNLIKE = {
    "gpt": ({**UNITS, "sparsity": [0.25], "rare": [0.0], "never": [0.0], "polysemanticity": [2.5]}, {"objectives_ratio": [0.125, 0.0625]}),
    "bdh": (
        {**UNITS, "hooks": ["xy_sparse", "xy_sparse"], "inactive_below": 0.0, "sparsity": [0.9, 0.8, 0.7], "rare": [0.1] * 3,
         "never": [0.0] * 3, "polysemanticity": [1.0, 2.0, 3.0]},
        {},
    ),
}  # fmt: skip


@pytest.fixture
def unlike_models(tmp_path) -> Results:
    """Two language models of other depths and hooks, and one that was trained elsewhere."""
    for name, (units, columns) in UNLIKE.items():
        with publishing(tmp_path / "models" / name, "model", {"seed": 0}, {}) as draft:
            draft.facts["parameters"] = 5
            curve(draft, step=[1.0, 2.0], lr=[0.1, 0.1], train_loss=[3.0, 2.0], validation_loss=[3.5, 2.5], **columns)
            losses = {"loss": 2.5, "perplexity": 12.25, "positions": 33}
            draft.write_json("metrics.json", {"validation": losses, "train": losses})
            draft.write_json("units.json", units)
        with publishing(tmp_path / "samples" / name, "sample", {"seed": 0}, {}) as draft:
            draft.write_json("sample.json", {"prompt": f"<{name}>", "text": " goes on\n", "ids": [1]})
    with publishing(tmp_path / "models" / "hub", "model", {"seed": 0}, {}) as draft:
        draft.facts["parameters"] = 7
        draft.write_json("metrics.json", {})
    samples = [tmp_path / "samples" / name / MANIFEST for name in UNLIKE]
    return load([], [tmp_path / "models" / name / MANIFEST for name in ("gpt", "bdh", "hub")], samples, [], [], [], [])
