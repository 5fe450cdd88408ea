"""Gets a Hugging Face model from a folder or the hub: configuration and weights, and what to remember of where they came from."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.models import foreign
from pipeline.study import hub_families, hub_files, places
from pipeline.study.models.hub import Hub

_SAFE = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
_PICKLED = ["config.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]


@dataclass(frozen=True)
class Fetched:
    """A model as it was found."""

    network: PreTrainedModel
    source: dict[str, Any]
    """Its configuration, the commit if it is from the hub, and the sha256 of each file."""


def fetch(spec: Hub) -> Fetched:
    """The model that a spec names, ready for inference. Raises UserError."""
    local = places.folder(spec.name)
    folder, commit = (local, None) if local.is_dir() else _snapshot(spec)
    try:
        described = hub_files.read_config(folder / "config.json")
        files = [folder / "config.json", *hub_files.weight_files(folder)]
    except ValueError as error:
        raise UserError(f"model '{spec.name}': {error}") from None
    if described["model_type"] not in hub_families.FAMILIES and not spec.modules:
        raise UserError(f"model '{spec.name}': {hub_families.unknown_family(described)}")
    with readable(spec.name), _quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        network, report = auto(config).from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, spec.dtype),
            attn_implementation="eager",
            trust_remote_code=False,
            local_files_only=True,
            weights_only=True,
            use_safetensors=files[1].name.startswith("model."),
            output_loading_info=True,
            **without_pooler(config),
        )
    for what, names in (("lack", report["missing_keys"]), ("have another shape for", report["mismatched_keys"])):
        if names:
            shown = ", ".join(sorted(map(str, names))[:3])
            raise UserError(f"model '{spec.name}': its weights {what} {shown}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
    foreign.require_dense(network.named_parameters(), f"model '{spec.name}'")
    foreign.require_finite(network.named_parameters(), f"model '{spec.name}'")
    source = {"config": settings(config), "commit": commit, "files": {file.name: sha256(file) for file in files}}
    return Fetched(network, source)


def auto(config: PretrainedConfig) -> Any:
    """Transformers' class to make such a model with: with the head that predicts the next token, or without any."""
    return AutoModelForCausalLM if is_causal(config) else AutoModel


def is_causal(config: PretrainedConfig) -> bool:
    """Whether a model predicts the next token. Where its family is not known, the name of its class says so."""
    if config.model_type in hub_families.FAMILIES:
        return hub_families.FAMILIES[config.model_type].causal
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())


def without_pooler(config: PretrainedConfig) -> dict[str, bool]:
    """The option that leaves out the pooler of an encoder, which no hook sees and many checkpoints lack."""
    if is_causal(config) or type(config) not in MODEL_MAPPING:
        return {}
    made_by: Any = MODEL_MAPPING[type(config)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(made_by).parameters else {}


def settings(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration as JSON that builds the model again, without what tells machines and versions apart."""
    told = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "transformers_version", "dtype")}
    return json.loads(json.dumps(told))  # keys that are numbers become text, as they are when read again


def _snapshot(spec: Hub) -> tuple[Path, str]:
    """The folder in the hub's cache that holds the files, fetched if need be, and the commit they are of."""
    try:
        folder = Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=_SAFE))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(spec.name, revision=spec.revision, allow_patterns=_PICKLED))
    except LocalEntryNotFoundError:
        raise UserError(f"model '{spec.name}': there is no such folder, it was never fetched, and the hub cannot be reached") from None
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise UserError(f"model '{spec.name}': the hub does not give it ({foreign.reason(error)})") from None
    return folder, folder.name


def readable(name: str) -> AbstractContextManager[None]:
    """Turns what transformers raises for files it cannot use into one line."""
    return foreign.reading(f"model '{name}': transformers {transformers.__version__} cannot load it")


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars, and no table of weights that are not needed: what matters is checked here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
