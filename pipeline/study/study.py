"""The study: every section parsed, sweeps expanded, names that refer to others followed."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from pipeline.study.activations import Activations
from pipeline.study.base import Name, Spec
from pipeline.study.dataset import Dataset
from pipeline.study.faults import Fault, Path, StudyError, not_among, validation_faults
from pipeline.study.kinds import TAGS, kinds
from pipeline.study.like import resolved
from pipeline.study.model import Model
from pipeline.study.sae import SAE
from pipeline.study.sae_faults import idle_faults, sae_faults
from pipeline.study.sections import Evaluation, Features, Probe, Report, Tracking
from pipeline.study.sweep import variants

Entries = dict[Name, Any]
SECTIONS = ("datasets", "models", "activations", "saes")


def _not_logs(name: str) -> str:
    if name == "logs":
        raise ValueError("results/logs/ is where SLURM's own logs go; choose another name")
    return name


class File(Spec):
    """A study file."""

    name: Annotated[Name, AfterValidator(_not_logs)]
    """Names the folder of its results, results/<name>/; not `logs`, where SLURM's own logs go."""
    data_dir: str | None = None
    """Folder in which corpora, models and tokenizers are looked for; the variable SAEFLOW_DATA when not given."""
    datasets: Annotated[Entries, Field(min_length=1)]
    models: Entries = {}
    activations: dict[Name, Activations] = {}
    saes: Entries = {}
    evaluation: Evaluation = Evaluation()
    features: Features = Features()
    probe: Probe | None = None
    report: Report = Report()
    tracking: Tracking = Tracking()


@dataclass(frozen=True)
class Harvest:
    """An entry of `activations` for one variant of its model."""

    entry: str
    model: str
    """Name of the model's variant."""
    spec: Activations


@dataclass(frozen=True)
class Study:
    """A valid study. Keys of datasets, models, activations and SAEs are names of variants, as their folders are called."""

    file: File
    datasets: dict[str, Dataset]
    models: dict[str, Model]
    activations: dict[str, Harvest]
    saes: dict[tuple[str, str, str], SAE]
    """By (activations, hook, SAE variant)."""
    families: dict[str, str] = field(default_factory=dict)
    """The entry that a variant of a model or SAE belongs to."""

    def width(self, activations: str, hook: str) -> int | None:
        """Width of a hook that is recorded, where it is known before the model is there."""
        return (self.models[self.activations[activations].model].hooks() or {}).get(hook)


def parse(raw: dict[str, Any]) -> Study:
    """A study from the settings of its files. Raises StudyError with every fault that can be told."""
    faults: list[Fault] = []
    for key in raw:
        if not isinstance(key, str):
            faults.append(Fault((), f"the key {key!r} is not text (YAML reads yes, no, on, off as truth values; quote it)"))
    raw = {key: _without_empty(value) if key in SECTIONS else value for key, value in raw.items()}
    file = _file({key: value for key, value in raw.items() if isinstance(key, str)}, faults)
    entries = {section: resolved(section, _section(raw, section), faults) for section in TAGS}
    tables = _expand(entries, "datasets", faults)
    datasets = {variant: dataset for found in tables.values() for variant, dataset in found.items()}
    models = _on_variants(_expand(entries, "models", faults), tables, entries, faults)
    saes = _expand(entries, "saes", faults)
    if file is None:
        raise StudyError(faults)
    _check_names(raw, faults)
    study = _connect(file, datasets, models, saes, faults)
    if faults:
        raise StudyError(faults)
    return study


def _without_empty(section: Any) -> Any:
    """A section without the entries that are null: an overlay takes an entry out so."""
    return {name: entry for name, entry in section.items() if entry is not None} if isinstance(section, dict) else section


def _file(raw: dict[str, Any], faults: list[Fault]) -> File | None:
    """The top level. What is wrong in it is set aside, where that can be, so that the rest is checked as well."""
    try:
        return File.model_validate(raw)
    except ValidationError as error:
        found = validation_faults(error, File, ())
    wrong = {fault.path[0] for fault in found if fault.path}
    rest = {key: value for key, value in raw.items() if key not in wrong}
    faults += found
    try:
        return File.model_validate({"name": "study", **rest})
    except ValidationError:
        return None


def _check_names(raw: dict[str, Any], faults: list[Fault]) -> None:
    """Names of other entries, checked as they are written: an entry that is wrong otherwise is not checked less."""
    for section, key, target, what in (
        ("models", "dataset", "datasets", "a dataset of this study"),
        ("activations", "model", "models", "a model of this study"),
        ("saes", "activations", "activations", "an entry of activations"),
    ):
        declared = [str(name) for name in _section(raw, target)]
        for entry, settings in _section(raw, section).items():
            name = settings.get(key) if isinstance(settings, dict) else None
            if isinstance(name, str) and name not in declared:
                faults.append(Fault((section, str(entry), key), not_among(name, declared, what)))


def _section(raw: dict[str, Any], section: str) -> dict[str, Any]:
    entries = raw.get(section)
    return entries if isinstance(entries, dict) else {}


def _expand(entries: dict[str, dict[str, Any]], section: str, faults: list[Fault]) -> dict[str, dict[str, Any]]:
    """Variants of every entry of a section, by entry."""
    tag, known = TAGS[section], kinds(section)
    found: dict[str, dict[str, Any]] = {}
    for name, raw in entries[section].items():
        at: Path = (section, name)
        found[name] = {}
        if not isinstance(raw, dict):
            faults.append(Fault(at, f"a mapping of settings is expected, with '{tag}' among them"))
        elif tag not in raw:
            faults.append(Fault((*at, tag), f"is missing (allowed: {', '.join(known)})"))
        elif not isinstance(raw[tag], str) or raw[tag] not in known:
            what = "an architecture" if tag == "architecture" else "a kind of dataset"
            faults.append(Fault((*at, tag), not_among(raw[tag], known, what)))
        else:
            found[name] = variants(str(name), raw, known[raw[tag]], at, faults)
    return found


def _on_variants(
    models: dict[str, dict[str, Model]],
    datasets: dict[str, dict[str, Dataset]],
    entries: dict[str, dict[str, Any]],
    faults: list[Fault],
) -> dict[str, dict[str, Model]]:
    """Models on a swept dataset: one for each of its variants, named with its suffix."""
    found: dict[str, dict[str, Model]] = {}
    for entry, under in models.items():
        found[entry] = {}
        for variant, model in under.items():
            for dataset in datasets.get(model.dataset) or [model.dataset]:
                found[entry][variant + dataset[len(model.dataset) :]] = model.model_copy(update={"dataset": dataset})
        name = next((model.dataset for model in under.values()), "")
        both = [key for key in _sweep(entries["models"][entry]) if key in _sweep(entries["datasets"].get(name))]
        if both:
            what = f"'{both[0]}' is swept here and in datasets.{name}; their variants could not be told apart"
            faults.append(Fault(("models", entry, "sweep", both[0]), what))
    return found


def _sweep(raw: Any) -> dict[str, Any]:
    sweep = raw.get("sweep") if isinstance(raw, dict) else None
    return sweep if isinstance(sweep, dict) else {}


def _connect(
    file: File, datasets: dict[str, Dataset], models: dict[str, dict[str, Model]], saes: dict[str, dict[str, SAE]], faults: list[Fault]
) -> Study:
    """Follows names from one section to another and expands what depends on a swept model."""
    for entry, found in models.items():
        for model in found.values():
            lacks = model.lacks(datasets[model.dataset].splits()) if model.dataset in datasets else []
            for problem in [*model.problems(), *lacks]:
                setting, _, text = problem.partition(": ")
                faults.append(Fault(("models", entry, *setting.split(".")), text))
        for model in list(found.values())[:1]:
            if model.dataset in datasets and datasets[model.dataset].form != model.form:
                form = datasets[model.dataset].form
                what = f"'{model.dataset}' holds {form}, and {model.architecture} takes {model.form}"
                faults.append(Fault(("models", entry, "dataset"), what))
    harvests: dict[str, dict[str, Harvest]] = {}
    for entry, spec in file.activations.items():
        harvests[entry] = {}
        if spec.model in models:
            _check_harvest(entry, spec, models[spec.model], datasets, faults)
            for variant in models[spec.model]:
                harvests[entry][entry + variant[len(spec.model) :]] = Harvest(entry, variant, spec)
    trained: dict[tuple[str, str, str], SAE] = {}
    for entry, sae_variants in saes.items():
        faults += idle_faults(entry, sae_variants.values())
        for variant, sae in sae_variants.items():
            if sae.activations not in file.activations:
                continue
            recorded = file.activations[sae.activations]
            faults += sae_faults(entry, sae, recorded, models.get(recorded.model, {}).values())
            for needed, purpose in (
                ("train", "SAEs are trained on"),
                (file.evaluation.split, "evaluation.split names"),
                (file.features.split, "features.split names"),
            ):
                if needed not in recorded.splits:
                    faults.append(Fault(("activations", sae.activations, "splits"), f"'{needed}' is missing, which {purpose}"))
            for harvest, one in harvests[sae.activations].items():
                for hook in sae.hooks or recorded.hooks:
                    trained[harvest, hook, variant] = sae
                    width = (models[recorded.model][one.model].hooks() or {}).get(hook)
                    for problem in sae.problems(width) if width else ():
                        setting, _, text = problem.partition(": ")
                        faults.append(Fault(("saes", entry, setting), text))
    study = Study(
        file=file,
        datasets=datasets,
        models={variant: model for found in models.values() for variant, model in found.items()},
        activations={variant: harvest for found in harvests.values() for variant, harvest in found.items()},
        saes=trained,
        families={variant: entry for found in (models, saes) for entry, under in found.items() for variant in under},
    )
    _check_sections(study, faults)
    return study


def _check_harvest(
    entry: str, spec: Activations, variants_of_model: dict[str, Model], datasets: dict[str, Dataset], faults: list[Fault]
) -> None:
    for model in variants_of_model.values():
        for position, hook in enumerate(spec.hooks):
            if problem := _hook_problem(model, hook, spec.model):
                faults.append(Fault(("activations", entry, "hooks", position), problem))
        if problem := spec.chunk_problem(model.hooks() or {}):
            faults.append(Fault(("activations", entry, "shard_rows"), problem))
        dataset = datasets.get(model.dataset)
        for position, split in enumerate(spec.splits):
            if dataset and split not in dataset.splits():
                faults.append(
                    Fault(("activations", entry, "splits", position), not_among(split, dataset.splits(), f"a split of {model.dataset}"))
                )


def _hook_problem(model: Model, hook: str, entry: str) -> str | None:
    known = model.hooks()
    if known is None:
        return model.misnamed(hook)
    return None if hook in known else not_among(hook, known, f"a hook of {entry}")


def _check_sections(study: Study, faults: list[Fault]) -> None:
    if probe := study.file.probe:
        for harvest in study.activations.values():
            model = study.models[harvest.model]
            dataset = study.datasets.get(model.dataset)
            if dataset is None:
                continue
            width = getattr(dataset, "width", None)
            if width is None:
                faults.append(Fault(("probe",), f"samples are rows of numbers, and '{model.dataset}' holds {dataset.form}"))
                continue
            width = width() if callable(width) else width
            for position, sample in enumerate(probe.samples):
                if len(sample.input) != width:
                    faults.append(
                        Fault(
                            ("probe", "samples", position, "input"),
                            f"{len(sample.input)} numbers, and '{model.dataset}' has {width} in a row",
                        )
                    )
