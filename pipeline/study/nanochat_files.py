"""The files of a checkpoint of nanochat's, and the shape they tell, without reading any weights."""

import json
import re
from pathlib import Path
from typing import Any

from pipeline.study import places

_KEYS = {"n_layer": "layers", "n_embd": "width", "n_head": "heads", "n_kv_head": "kv_heads", "sequence_len": "context"}
_VOCABULARY = "vocab_size"


def files(folder: str, step: int | None) -> tuple[Path, Path]:
    """Weights and description of a step, the last one when it is None. Raises ValueError with one line."""
    where = places.folder(folder)
    if not where.is_dir():
        raise ValueError(f"there is no folder '{folder}'")
    steps = {int(found[1]): file for file in where.iterdir() if (found := re.fullmatch(r"model_(\d+)\.pt", file.name))}
    if not steps:
        raise ValueError(f"'{folder}' has no file model_XXXXXX.pt")
    if step is not None and step not in steps:
        raise ValueError(f"'{folder}' has no step {step} (it has: {', '.join(map(str, sorted(steps)))})")
    weights = steps[max(steps) if step is None else step]
    meta = where / f"meta_{weights.stem.removeprefix('model_')}.json"
    if not meta.is_file():
        raise ValueError(f"'{folder}' has {weights.name} and no {meta.name} beside it")
    return weights, meta


def shape(folder: str, step: int | None) -> dict[str, int]:
    """Shape of the checkpoint, by the names that a study has for it. Raises ValueError with one line."""
    config = _config(files(folder, step)[1])
    return {ours: config[theirs] for theirs, ours in _KEYS.items()}


def vocabulary(meta: Path) -> int:
    """Tokens that the checkpoint's tokenizer has. Raises ValueError with one line."""
    return _config(meta)[_VOCABULARY]


def _config(meta: Path) -> dict[str, Any]:
    """What the description says of the model. A later nanochat has settings that change what it computes, such as windows of
    attention, so none may be there that is not known."""
    try:
        config = json.loads(meta.read_text(encoding="utf-8"))["model_config"]
    except (ValueError, OSError, KeyError, TypeError):
        raise ValueError(f"{meta} is not readable as JSON with a model_config") from None
    wanted = {*_KEYS, _VOCABULARY}
    if not isinstance(config, dict) or (missing := sorted(wanted - config.keys())):
        raise ValueError(f"{meta}: model_config lacks {', '.join(missing) if isinstance(config, dict) else 'everything'}")
    if unknown := sorted(config.keys() - wanted):
        raise ValueError(f"{meta}: model_config has {', '.join(unknown)}, of a nanochat that is not known here (known: the first version)")
    for key in sorted(wanted):
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1:
            raise ValueError(f"{meta}: model_config: {key} is {config[key]!r}, and a whole number is expected")
    return config
