"""The default study reaches the quality it claims; a study of text goes the whole way; every study here is valid."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch

from pipeline.study.faults import StudyError
from pipeline.study.graph import Graph
from pipeline.study.open import read_study

from .conftest import ROOT, Project

pytestmark = pytest.mark.slow

TEXT = {
    "name": "text",
    "datasets": {"shakespeare": {"kind": "text", "corpus": "tinyshakespeare", "validation": 0.02}},
    "models": {
        "gpt": {
            "architecture": "gpt",
            "dataset": "shakespeare",
            "layers": 2,
            "width": 32,
            "heads": 2,
            "context": 32,
            "threads": 1,
            "training": {"steps": 200, "batch": 32, "lr": 0.01, "validate_every": 100},
            "sweep": {"seed": [0, 1]},
        }
    },
    "activations": {
        "block": {
            "model": "gpt",
            "hooks": ["blocks.1.resid_post", "blocks.0.mlp_hidden"],
            "rows": 5000,
            "chunk_rows": 512,
            "shard_rows": 2048,
        }
    },
    "saes": {"topk": {"architecture": "topk", "activations": "block", "latents": 64, "k": 8, "training": {"epochs": 2, "batch": 256}}},
}


SHORT = {"steps": 30, "batch": 8, "lr": 0.01, "validate_every": 15, "validate_on": 20}
SHAPE = {
    "dataset": "stories", "layers": 2, "width": 16, "heads": 2, "context": 16, "threads": 1, "training": SHORT, "pool": {"tokens": 500},
}  # fmt: skip
MODELS = {
    "name": "models",
    "datasets": {
        "stories": {
            "kind": "text", "corpus": "tinystories", "documents": 60, "validation": 0.2,
            "tokenizer": {"kind": "hub", "name": "stories260K"},
        }
    },
    "models": {
        "plain": {**SHAPE, "architecture": "gpt", "sample": {"prompt": "Once", "tokens": 5}},
        "shaped": {
            "like": "plain",
            "objectives": [{"objective": "anti-polysemantic", "tokens": 64}, {"objective": "topk-mlp", "ratio": 0.25}],
            "sweep": {"objectives.0.weight": [0.01, 0.1]},
        },
        "nanochat": {**SHAPE, "architecture": "nanochat", "kv_heads": 1},
        "bdh": {**SHAPE, "architecture": "bdh", "multiplier": 8, "export": "bdh_checkpoint.pt"},
        "llama": {"architecture": "hub", "dataset": "stories", "name": "stories260K", "context": 64},
    },
    "activations": {
        name: {"model": name, "hooks": [hook], "rows": 1000, "chunk_rows": 256, "shard_rows": 512}
        for name, hook in {
            "shaped": "blocks.1.mlp_hidden", "nanochat": "blocks.1.mlp_hidden", "bdh": "blocks.1.xy_sparse", "llama": "blocks.2.resid_mid",
        }.items()
    },
    "saes": {
        name: {"architecture": "topk", "activations": name, "latents": 64, "k": 8, "training": {"epochs": 1, "batch": 128}}
        for name in ("shaped", "nanochat", "bdh", "llama")
    },
}  # fmt: skip


def test_every_kind_of_model_goes_the_whole_way(tmp_path: Path, data_folder: Path):
    project = Project(tmp_path)
    project.write_study({**MODELS, "data_dir": str(data_folder.resolve()), "tracking": {"tensorboard": True}})
    project.run()
    assert project.planned() == set()
    models = tmp_path / "results/models/models"
    units = {name: json.loads((models / name / "units.json").read_text()) for name in ("plain", "shaped_weight=0.1", "nanochat", "bdh")}
    assert min(units["shaped_weight=0.1"]["sparsity"]) >= 0.75  # 16 of 64 stay, of which some are small
    assert max(units["plain"]["sparsity"]) < 0.75
    assert json.loads((tmp_path / "results/models/samples/plain/sample.json").read_text())["prompt"] == "Once"
    config = torch.load(models / "bdh/bdh_checkpoint.pt", weights_only=True)["config"]
    assert (config["n_layer"], config["n_embd"], config["vocab_size"]) == (2, 16, 512)
    assert list((tmp_path / "results/models/logs/models/plain/tensorboard").iterdir())
    table = {row["activations"]: row for row in csv.DictReader((tmp_path / "results/models/report/saes.csv").open())}
    assert set(table) == {"shaped_weight=0.01", "shaped_weight=0.1", "nanochat", "bdh", "llama"}
    assert all(0 < float(row["fve"]) <= 1 for row in table.values())
    page = (tmp_path / "results/models/report/index.html").read_text()
    for found in ('<h2 id="units">', "<b>Once</b>", "perplexity against polysemanticity"):
        assert found in page
    done = project.python("-m", "pipeline", "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    plain = {**MODELS["models"]["plain"], "sample": {"prompt": "Twice", "tokens": 5}}
    project.write_study({**MODELS, "models": {**MODELS["models"], "plain": plain}, "data_dir": str(data_folder.resolve())})
    assert project.planned() == {"sample_text", "write_report"}  # another prompt trains nothing again


OVERLAYS = {"bdh-published": "bdh-shakespeare", "training-time-more": "training-time", "training-time-published": "training-time",
            "pretrained-hub": "pretrained"}  # fmt: skip


@pytest.mark.parametrize(("overlay", "study"), OVERLAYS.items())
def test_every_overlay_is_valid_on_its_study(overlay: str, study: str):
    graph = Graph(read_study([ROOT / f"studies/{study}.yaml", ROOT / f"studies/overlays/{overlay}.yaml"]))
    assert graph.study.file.name == overlay


def test_the_published_sizes_are_the_published_ones():
    def model(study: str, overlay: str, name: str):
        return read_study([ROOT / f"studies/{study}.yaml", ROOT / f"studies/overlays/{overlay}.yaml"]).models[name]

    bdh = model("bdh-shakespeare", "bdh-published", "bdh")
    assert (bdh.layers, bdh.width, bdh.heads, bdh.multiplier, bdh.context, bdh.dropout) == (6, 256, 4, 128, 512, 0.1)
    assert (bdh.training.steps, bdh.training.batch, bdh.training.lr, bdh.training.weight_decay, bdh.training.decay) == (
        3000,
        32,
        1e-3,
        0.1,
        "all",
    )
    gpt = model("training-time", "training-time-published", "orthogonality_seed=42_weight=0.01")
    assert (gpt.layers, gpt.width, gpt.heads, gpt.mlp_width or 4 * gpt.width, gpt.context, gpt.dropout) == (6, 384, 6, 1536, 512, 0.1)
    assert (gpt.training.steps, gpt.training.batch, gpt.training.lr, gpt.training.betas, gpt.training.clip) == (
        50000,
        64,
        3e-4,
        (0.9, 0.95),
        1.0,
    )
    assert (gpt.training.schedule.warmup, gpt.training.schedule.final, gpt.objectives[0].tokens) == (1000, 0.0, 4096)


def test_the_published_nanochat_is_only_short_of_its_checkpoint():
    with pytest.raises(StudyError) as error:
        read_study([ROOT / "studies/nanochat.yaml", ROOT / "studies/overlays/nanochat-published.yaml"])
    assert [str(line).split(": ", 1)[1] for line in error.value.faults] == ["models.d20.checkpoint: there is no folder 'nanochat-d20'"]


@pytest.mark.parametrize("file", ["config.yaml", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "studies").glob("*.yaml"))])
def test_every_study_of_the_project_is_valid(file: str):
    assert Graph(read_study([ROOT / file])).everything()["report"]


def test_the_default_study_reaches_what_it_claims(tmp_path: Path):
    project = Project(tmp_path)
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    ran = project.python("-m", "pipeline", "run")
    assert ran.returncode == 0, ran.stderr[-3000:]
    metrics = json.loads((tmp_path / "results/pointer/models/mlp/metrics.json").read_text())
    assert metrics["validation"]["loss"] <= 0.04
    assert metrics["test"]["rounded_accuracy"] >= 0.97
    relu, topk = csv.DictReader((tmp_path / "results/pointer/report/saes.csv").open())
    assert (relu["sae"], topk["sae"]) == ("relu", "topk")
    # The published recipe on the same activations: FVE 0.989, 15.3 latents above 0.01 (studies/pointer-recipes.yaml).
    assert float(relu["fve"]) >= 0.9893
    assert float(relu["l0_above"]) <= 15.6
    assert float(relu["loss_score_zero"]) > 0.99
    assert re.search(r"report +results/pointer/report/index.html", ran.stdout)
    assert re.search(r"started +\d\d:\d\d:\d\d\nfinished +\d\d:\d\d:\d\d\nduration +\d+ s", ran.stdout)


def test_a_text_goes_the_whole_way(tmp_path: Path, data_folder: Path):
    project = Project(tmp_path)
    project.write_study({**TEXT, "data_dir": str(data_folder.resolve())})
    project.run()
    results = tmp_path / "results/text"
    dataset = json.loads((results / "datasets/shakespeare/manifest.json").read_text())
    assert dataset["facts"]["tokens"] == {"train": 1_093_086, "validation": 22_308}
    table = list(csv.DictReader((results / "report/saes.csv").open()))
    assert [(row["activations"], row["hook"]) for row in table] == [
        (f"block_seed={seed}", hook) for seed in (0, 1) for hook in ("blocks.1.resid_post", "blocks.0.mlp_hidden")
    ]
    for row in table:
        assert float(row["l0"]) <= 8
        assert 0 < float(row["fve"]) < 1
        assert float(row["loss_clean"]) < float(row["loss_sae"]) < float(row["loss_zero"])
    page = (results / "report/index.html").read_text()
    assert '<span class="on"' in page
    assert page.count("<td>2</td>") >= 2  # two seeds in one row of the table
