"""The files of a Hugging Face model in a folder, or in the cache of the hub, without reading any weights."""

import json
import re
from pathlib import Path
from typing import Any

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names that weights have, the preferred one first; in parts they are named by an index of that name and `.index.json`."""


def read_config(file: Path) -> dict[str, Any]:
    """A `config.json`. Raises ValueError with one line."""
    if not file.is_file():
        raise ValueError(f"{file.parent} has no config.json" if file.parent.is_dir() else f"there is no folder {file.parent}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not readable as JSON ({error})") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{file} names no model_type, so it is not the configuration of a model")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, with the index where there are several. Raises ValueError with one line."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [index, *_parts(index)]
    raise ValueError(f"{folder} has no weights ({' or '.join(WEIGHTS)}, or an index of parts)")


def _parts(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, OSError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is not readable as an index of parts") from None
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{index} is not readable as an index of parts")
    for name in names:
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent} lacks {name}, which its index names")
    return [index.parent / name for name in names]


def is_hub_name(name: str) -> bool:
    """Whether a text can be the name of a model on the hub: `owner/model`, or `model` alone."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name) is not None


def cached_config(name: str, revision: str | None) -> Path | None:
    """The `config.json` of a model on the hub, where it was fetched before. Nothing is asked of the network."""
    from huggingface_hub import try_to_load_from_cache  # 0.1 s, which a study without such a model does not pay

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None
