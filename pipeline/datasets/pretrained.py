"""Hugging Face tokenizers, from a local folder or the hub. No code of a model is ever run."""

import json
from pathlib import Path
from typing import Any

from pipeline.artifacts.errors import UserError
from pipeline.artifacts.manifest import sha256
from pipeline.datasets.tokenizer import FILE, Subwords
from pipeline.study import places
from pipeline.study.tokenizer import Tokenizer as Spec
from pipeline.study.tokenizer import is_path

_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
"""End-of-text tokens, looked for where no file beside the tokenizer names one."""


def load(spec: Spec) -> tuple[Subwords, dict[str, str]]:
    """The tokenizer and what it was read from: files with their hashes, or the hub's commit. Raises UserError."""
    assert spec.name is not None
    if is_path(spec.name):
        return _from_folder(places.folder(spec.name), spec.name), {file: sha256(Path(file)) for file in spec.sources()}
    folder = _fetched(spec.name, spec.revision)
    return _from_folder(folder, spec.name), {f"hub:{spec.name}": folder.name}


def _fetched(name: str, revision: str | None) -> Path:
    """The hub's files of a tokenizer in this user's cache; the folder is called as the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    wanted = ["tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "spiece.model", "added_tokens.json", "config.json"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError, HTTPError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: the tokenizer could not be fetched from the Hugging Face hub: {told}") from None


def _from_folder(folder: Path, name: str) -> Subwords:
    try:
        definition, end = _definition(folder, name)
        return Subwords(definition, end, name)
    except UserError:
        raise
    except Exception as error:  # the only class that the tokenizers library raises
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: {FILE} is no tokenizer: {told or type(error).__name__}") from None


def _definition(folder: Path, name: str) -> tuple[dict[str, Any], str | None]:
    """The tokenizer's JSON and its end-of-text token."""
    if not (folder / FILE).is_file():
        return _converted(folder, name)
    definition = _json(folder / FILE)
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise UserError(f"{folder / FILE}: is no tokenizer of the tokenizers library")
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file() and (found := _end(folder / file)) is not None:
            return definition, found
    vocab = definition["model"].get("vocab", ())
    added = {token["content"] for token in definition.get("added_tokens", ())}
    known = added | (vocab.keys() if isinstance(vocab, dict) else {token for token, _ in vocab})
    return definition, next((end for end in _ENDS if end in known), None)


def _end(file: Path) -> str | None:
    """The end-of-text token that a file beside the tokenizer names: `eos_token`, a text or a mapping with its `content`."""
    content = _json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: a JSON object is expected")
    found = content.get("eos_token")
    found = found.get("content", found) if isinstance(found, dict) else found
    if not isinstance(found, str | None):
        raise UserError(f"{file}: eos_token: a text is expected, or a mapping with a text as its content")
    return found


def _converted(folder: Path, name: str) -> tuple[dict[str, Any], str | None]:
    """A tokenizer in an older form, as transformers converts it."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        return json.loads(found.backend_tokenizer.to_str()), found.eos_token
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{name}: has no {FILE}, and no tokenizer could be made of its other files: {told}") from None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({error})") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
