"""What the report is made of: every artifact of a study, read through its manifest."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.manifest import Artifact
from pipeline.study.names import without_seed


@dataclass(frozen=True)
class Model:
    """A model: its losses by split, and where it was trained here its curve (columns step, lr, train_loss, ...); of a language
    model also what its hidden units do, and a text it goes on with."""

    name: str
    artifact: Artifact
    curve: pa.Table | None
    metrics: dict[str, dict[str, float]]
    units: dict[str, Any] | None
    sample: Artifact | None


@dataclass(frozen=True)
class Trained:
    """An SAE with all that was measured of it."""

    activations: str
    hook: str
    name: str
    artifact: Artifact
    curve: pa.Table
    metrics: dict[str, Any]
    latents: pa.Table
    contexts: pa.Table
    evaluation: Artifact
    features: Artifact
    probe: Artifact | None

    @property
    def group(self) -> tuple[str, str, str]:
        """What SAEs have in common that differ by seeds alone: activations, hook and SAE."""
        return without_seed(self.activations), self.hook, without_seed(self.name)

    @property
    def output(self) -> str:
        """The hook that is predicted: the one that is read, unless it is a transcoder."""
        return self.artifact.spec.get("output", self.hook)

    @property
    def kind(self) -> str:
        """Its architecture, and what it is where it is more than an autoencoder."""
        architecture = self.artifact.spec["architecture"]
        if self.output == self.hook:
            return architecture
        return f"{architecture} {'skip-transcoder' if self.artifact.spec['skip'] else 'transcoder'}"


@dataclass(frozen=True)
class Results:
    """All artifacts of a study, in the study's order."""

    datasets: dict[str, Artifact]
    models: list[Model]
    saes: list[Trained]

    def groups(self) -> dict[tuple[str, str, str], list[Trained]]:
        """SAEs by what they have in common."""
        found: dict[tuple[str, str, str], list[Trained]] = {}
        for sae in self.saes:
            found.setdefault(sae.group, []).append(sae)
        return found

    def model_groups(self) -> dict[str, list[Model]]:
        """Models by the name that those share which differ by their seed alone."""
        found: dict[str, list[Model]] = {}
        for model in self.models:
            found.setdefault(without_seed(model.name), []).append(model)
        return found

    def artifacts(self) -> dict[str, Artifact]:
        """Every artifact that the report reads, by its folder's name under the study's."""
        found = {f"datasets/{name}": artifact for name, artifact in self.datasets.items()}
        found |= {f"models/{model.name}": model.artifact for model in self.models}
        found |= {f"samples/{model.name}": model.sample for model in self.models if model.sample}
        for sae in self.saes:
            parts = {"saes": sae.artifact, "evaluation": sae.evaluation, "features": sae.features, "probe": sae.probe}
            found |= {f"{stage}/{sae.activations}/{sae.hook}/{sae.name}": one for stage, one in parts.items() if one}
        return found


def load(
    datasets: list[Path],
    models: list[Path],
    samples: list[Path],
    saes: list[Path],
    evaluation: list[Path],
    features: list[Path],
    probes: list[Path],
) -> Results:
    """Reads everything the report shows from manifests."""
    evaluated, described, probed = _by_sae(evaluation), _by_sae(features), _by_sae(probes)
    trained = []
    for key, artifact in _by_sae(saes).items():
        trained.append(
            Trained(
                *key,
                artifact=artifact,
                curve=pq.read_table(artifact.file("training.parquet")),
                metrics=evaluated[key].read_json("metrics.json"),
                latents=pq.read_table(described[key].file("latents.parquet")),
                contexts=pq.read_table(described[key].file("contexts.parquet")),
                evaluation=evaluated[key],
                features=described[key],
                probe=probed.get(key),
            )
        )
    texts = {path.parent.name: Artifact.open(path) for path in samples}
    return Results(
        datasets={path.parent.name: Artifact.open(path) for path in datasets},
        models=[_model(path, texts.get(path.parent.name)) for path in models],
        saes=trained,
    )


def _model(manifest: Path, sample: Artifact | None) -> Model:
    artifact = Artifact.open(manifest)
    units = artifact.read_json("units.json") if "units.json" in artifact.files else None
    curve = pq.read_table(artifact.file("training.parquet")) if "training.parquet" in artifact.files else None
    return Model(manifest.parent.name, artifact, curve, artifact.read_json("metrics.json"), units, sample)


def _by_sae(manifests: Iterable[Path]) -> dict[tuple[str, str, str], Artifact]:
    """Artifacts of a stage by (activations, hook, SAE), as their folders say."""
    found = {}
    for path in manifests:
        activations, hook, name = path.parts[-4:-1]
        found[activations, hook, name] = Artifact.open(path)
    return found
