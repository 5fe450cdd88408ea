"""The study as the workflow sees it: where each artifact lies, and which settings each step reads.

Paths are relative to the folder the workflow runs in. A step's settings are one canonical JSON text that holds what the
step reads and nothing else, so that a change elsewhere in the study reruns nothing.
"""

import json
import re
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

from pipeline.code import code
from pipeline.study.activations import Activations
from pipeline.study.language import Language
from pipeline.study.model import Model
from pipeline.study.names import module_name, without_seed
from pipeline.study.sae import SAE
from pipeline.study.sae_jobs import megabytes
from pipeline.study.study import Study


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Graph:
    """Paths and step settings of one study."""

    ARTIFACTS = {
        "dataset": "datasets/{dataset}",
        "model": "models/{model}",
        "sample": "samples/{model}",
        "activations": "activations/{activations}/{split}",
        "sae": "saes/{activations}/{hook}/{sae}",
        "evaluation": "evaluation/{activations}/{hook}/{sae}",
        "features": "features/{activations}/{hook}/{sae}",
        "probe": "probe/{activations}/{hook}/{sae}",
        "report": "report",
    }

    def __init__(self, study: Study) -> None:
        self.study = study
        self.root = str(PurePosixPath("results") / study.file.name)

    def folder(self, stage: str) -> str:
        """Folder of a stage's artifacts, with wildcards."""
        return f"{self.root}/{self.ARTIFACTS[stage]}"

    def at(self, stage: str, file: str) -> str:
        """A file of a stage's artifact, with wildcards."""
        return f"{self.folder(stage)}/{file}"

    def log(self, stage: str, file: str) -> str:
        """A log or benchmark file of a stage, with wildcards."""
        return f"{self.root}/logs/{self.ARTIFACTS[stage]}/{file}"

    def dataset_of(self, wildcards: Any) -> str:
        """The dataset of the model that `wildcards` names, itself or through its activations."""
        model = getattr(wildcards, "model", None) or self.model_of(wildcards)
        return self.study.models[model].dataset

    def model_of(self, wildcards: Any) -> str:
        """The model variant whose activations `wildcards` names."""
        return self.study.activations[wildcards.activations].model

    def sources(self, wildcards: Any) -> list[str]:
        """Files of the user that a dataset is read from."""
        return self.study.datasets[wildcards.dataset].sources()

    def model_files(self, wildcards: Any) -> list[str]:
        """Files of the user that a model is read from."""
        return self.study.models[wildcards.model].sources()

    def dataset_manifest(self, wildcards: Any) -> str:
        """Manifest of the dataset behind some activations."""
        return self.at("dataset", "manifest.json").format(dataset=self.dataset_of(wildcards))

    def model_manifest(self, wildcards: Any) -> str:
        """Manifest of the model behind some activations."""
        return self.at("model", "manifest.json").format(model=self.model_of(wildcards))

    def store_manifest(self, split: str) -> str:
        """Manifest of the store of a split, its activations a wildcard."""
        return self.at("activations", "manifest.json").replace("{split}", split)

    def tracking(self) -> dict[str, Any]:
        """Where curves are shown while models and SAEs train."""
        return {**self.study.file.tracking.model_dump(mode="json"), "folder": f"{self.root}/logs"}

    def code_of(self, stage: str, wildcards: Any) -> str:
        """Digests of the modules of the kind that `wildcards` names: a dataset's, a model's architecture and objectives, or an SAE's
        architecture."""
        kind = {
            "dataset": lambda: self.study.datasets[wildcards.dataset].kind,
            "model": lambda: self._model_at(wildcards).architecture,
            "sae": lambda: self.sae_of(wildcards).architecture,
        }[stage]()
        model = self._model_at(wildcards) if stage == "model" else None
        objectives = model.kinds_of_objective() if isinstance(model, Language) else []
        modules = [f"pipeline.{stage}s.{module_name(kind)}", *(f"pipeline.objectives.{module_name(one)}" for one in objectives)]
        return " ".join(code(*modules).values())

    def _model_at(self, wildcards: Any) -> Model:
        return self.study.models[getattr(wildcards, "model", None) or self.model_of(wildcards)]

    def sae_of(self, wildcards: Any) -> SAE:
        """The SAE variant that `wildcards` names."""
        return self.study.saes[wildcards.activations, wildcards.hook, wildcards.sae]

    def output_of(self, wildcards: Any) -> str:
        """The hook that an SAE predicts: the one that it reads, unless it is a transcoder."""
        sae = self.sae_of(wildcards)
        return sae.outputs[sae.hooks.index(wildcards.hook)] if sae.hooks and sae.outputs else wildcards.hook

    def validation_manifest(self, wildcards: Any) -> list[str]:
        """Manifest of the store on which SAEs are measured while they are trained, where there is one."""
        recorded = "validation" in self.harvest_of(wildcards).splits
        return [self.store_manifest("validation").format(activations=wildcards.activations)] if recorded else []

    def together(self) -> list[list[str]]:
        """Names of SAE variants that are trained in one job, on each of their hooks: those of an entry that share what decides their
        batches, where it says so."""
        found: dict[tuple, list[str]] = {}
        for (_, _, name), spec in self.study.saes.items():
            if spec.train_together:
                group = found.setdefault((self.study.families[name], *spec.batches()), [])
                group += [name] if name not in group else []
        return [group for group in found.values() if len(group) > 1]

    def alone(self) -> str:
        """A pattern of the names of all other variants."""
        names = "|".join(re.escape(name) for group in self.together() for name in group)
        return f"(?!({names})(/|$))[A-Za-z0-9._=+-]+" if names else r"[A-Za-z0-9._=+-]+"

    def cores_of_sae(self, wildcards: Any, name: str | None = None) -> int:
        """Cores of the job that trains the SAE that `wildcards` names, or this variant on the same hook."""
        spec = self.sae_of(wildcards if name is None else self._variants(wildcards, [name])[0])
        return spec.threads * spec.training.processes

    def memory_of_saes(self, wildcards: Any, attempt: int, names: list[str]) -> int:
        """Memory, in MB, of the job that trains some variants together, or one."""
        variants = self._variants(wildcards, names)
        of = wildcards.activations
        width, out = (self.study.width(of, hook) or 0 for hook in (wildcards.hook, self.output_of(variants[0])))
        return megabytes([self.sae_of(one) for one in variants], width, out) * attempt

    def code_of_saes(self, wildcards: Any, names: list[str]) -> str:
        """Digests of the modules of their architecture."""
        return self.code_of("sae", self._variants(wildcards, names)[0])

    def spec_of_saes(self, wildcards: Any, names: list[str]) -> str:
        """The settings of the step that trains them, as canonical JSON."""
        return canonical({one.sae: self._sae(one) for one in self._variants(wildcards, names)})

    def _variants(self, wildcards: Any, names: list[str]) -> list[Any]:
        """The wildcards of some SAE variants on the hook that `wildcards` names."""
        return [SimpleNamespace(activations=wildcards.activations, hook=wildcards.hook, sae=name) for name in names]

    def harvest_of(self, wildcards: Any) -> Activations:
        """The settings of the activations that `wildcards` names."""
        return self.study.activations[wildcards.activations].spec

    def outer_mb(self, wildcards: Any) -> int:
        """MiB of the sums of outer products of a shard, of hooks whose width is known before the model is there."""
        widths = [self.study.width(wildcards.activations, hook) or 0 for hook in self.harvest_of(wildcards).covariance]
        return sum(8 * width**2 for width in widths) // 2**20

    def parts(self, wildcards: Any) -> list[str]:
        """What the jobs of a harvest leave."""
        at = self.at("activations", "parts/{job}.json")
        names = {"activations": wildcards.activations, "split": wildcards.split}
        return [at.format(**names, job=job) for job in range(self.harvest_of(wildcards).jobs)]

    def all_of(self, stage: str) -> list[str]:
        """Manifests of all artifacts of a stage, in the study's order."""
        return [f"{folder}/manifest.json" for folder in self.everything()[stage]]

    def figures(self) -> list[tuple[str, str, dict[str, str]]]:
        """File name, kind and labels of each figure of the report."""
        study = self.study
        found = [
            (f"model_{entry}.svg", "model", {"of": entry, "what": "training"})
            for entry in dict.fromkeys(study.families[name] for name, model in study.models.items() if not model.pretrained())
        ]
        compared = {without_seed(name) for name, model in study.models.items() if isinstance(model, Language) and not model.pretrained()}
        if len(compared) > 1:
            found.append(("tradeoff.svg", "tradeoff", {"of": "all language models", "what": "perplexity and units"}))
        if study.saes:
            found.append(("frontier.svg", "frontier", {"of": "all SAEs", "what": "L0 and FVE"}))
        for entry, hook in dict.fromkeys((study.activations[activations].entry, hook) for activations, hook, _ in study.saes):
            for kind, what in (("training", "training"), ("density", "density")):
                found.append((f"{kind}_{entry}_{hook}.svg", kind, {"of": f"{entry}, {hook}", "what": what}))
        return found

    def everything(self) -> dict[str, list[str]]:
        """Folders of all artifacts of the study, by stage."""
        return {stage: [self.folder(stage).format(**one) for one in ones] for stage, ones in self._names().items()}

    def spec_at(self, folder: str) -> dict[str, Any] | None:
        """The settings of the artifact in a folder; None when the study has none there."""
        for stage, ones in self._names().items():
            for one in ones:
                if self.folder(stage).format(**one) == folder:
                    return json.loads(self.spec(stage, SimpleNamespace(**one)))
        return None

    def _names(self) -> dict[str, list[dict[str, str]]]:
        """The wildcards of all artifacts, by stage."""
        study = self.study
        names: list[dict[str, str]] = [{"activations": a, "hook": h, "sae": s} for a, h, s in study.saes]
        return {
            "dataset": [{"dataset": dataset} for dataset in study.datasets],
            "model": [{"model": model} for model in study.models],
            "sample": [{"model": name} for name, model in study.models.items() if isinstance(model, Language)],
            "activations": [{"activations": a, "split": split} for a, one in study.activations.items() for split in one.spec.splits],
            "sae": names,
            "evaluation": names,
            "features": names,
            "probe": names if study.file.probe else [],
            "report": [{}],
        }  # fmt: skip

    def spec(self, stage: str, wildcards: Any) -> str:
        """The settings that the step of `stage` reads, as canonical JSON."""
        return canonical(getattr(self, f"_{stage}")(wildcards))

    def _dataset(self, wildcards: Any) -> dict:
        return self.study.datasets[wildcards.dataset].settings()

    def _model(self, wildcards: Any) -> dict:
        return self.study.models[wildcards.model].settings()

    def _sample(self, wildcards: Any) -> dict:
        model = self.study.models[wildcards.model]
        assert isinstance(model, Language)
        return {**model.sample.model_dump(mode="json"), "seed": model.seed, "threads": model.threads}

    def _activations(self, wildcards: Any) -> dict:
        return {**self.study.activations[wildcards.activations].spec.settings(), "split": wildcards.split}

    def _store(self, wildcards: Any) -> dict:
        """What decides the bytes of a store, and where they lie."""
        return {**self._activations(wildcards), "location": self._run(wildcards)["location"]}

    def _harvest(self, wildcards: Any) -> dict:
        """Of one job of a harvest; under `run` what decides no byte."""
        run = {**self._run(wildcards), "job": int(wildcards.job), "memory_mb": self.harvest_of(wildcards).memory_mb}
        return {**self._activations(wildcards), "run": run}

    def _seal(self, wildcards: Any) -> dict:
        return {**self._activations(wildcards), "run": self._run(wildcards)}

    def _run(self, wildcards: Any) -> dict:
        spec = self.harvest_of(wildcards)
        at = self.ARTIFACTS["activations"].format(activations=wildcards.activations, split=wildcards.split)
        location = f"{spec.location.rstrip('/')}/{self.study.file.name}/{at}" if spec.location else None
        return {"jobs": spec.jobs, "location": location}

    def _sae(self, wildcards: Any) -> dict:
        spec = self.sae_of(wildcards)
        own = {**spec.settings(), "hook": wildcards.hook, "metadata": {"model_name": self.model_of(wildcards)}}
        output = self.output_of(wildcards)
        return {**own, "outputs": [output], "output": output} if spec.outputs else own

    def _evaluation(self, wildcards: Any) -> dict:
        return {**self.study.file.evaluation.model_dump(mode="json"), "hook": wildcards.hook, "output": self.output_of(wildcards)}

    def _features(self, wildcards: Any) -> dict:
        return {**self.study.file.features.model_dump(mode="json"), "hook": wildcards.hook, "output": self.output_of(wildcards)}

    def _probe(self, wildcards: Any) -> dict:
        assert self.study.file.probe is not None
        return {**self.study.file.probe.model_dump(mode="json"), "hook": wildcards.hook}

    def _entries(self) -> dict[str, dict[str, str]]:
        """The entry of the study that each variant of a model, of activations, and of an SAE, belongs to."""
        study = self.study
        return {
            "models": {variant: study.families[variant] for variant in study.models},
            "saes": {variant: study.families[variant] for _, _, variant in study.saes},
            "activations": {variant: harvest.entry for variant, harvest in study.activations.items()},
        }

    def _report(self, wildcards: Any) -> dict:
        return {
            **self.study.file.report.model_dump(mode="json"),
            "name": self.study.file.name,
            "entries": self._entries(),
            "order": self.all_of("sae"),
        }
