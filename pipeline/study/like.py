"""Entries that are like another one of their section but for what they say themselves."""

from typing import Any

from pipeline.study.faults import Fault, not_among
from pipeline.study.read import overlay


def resolved(section: str, entries: dict[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """The entries with `like: other` replaced by the settings of `other` under their own. Of a chain, each adds to the last. An
    entry whose other one is not there or wrong is told and left out."""
    found = {name: _resolved(section, str(name), raw, entries, faults) for name, raw in entries.items()}
    return {name: settings for name, settings in found.items() if settings is not None}


def _resolved(section: str, name: str, raw: Any, entries: dict[str, Any], faults: list[Fault]) -> Any:
    chain = [name]
    while isinstance(raw, dict) and "like" in raw:
        other = raw["like"]
        rest = {key: value for key, value in raw.items() if key != "like"}
        if other in chain:
            faults.append(Fault((section, name, "like"), f"leads back to itself: {' -> '.join([*chain, str(other)])}"))
            return None
        if not isinstance(other, str) or other not in entries:
            known = [str(one) for one in entries if one != name]
            faults.append(Fault((section, chain[-1], "like"), not_among(other, known, f"another entry of {section}")))
            return None
        if not isinstance(entries[other], dict):
            return None
        chain.append(other)
        raw = overlay(entries[other], rest)
        if "like" in entries[other]:
            raw["like"] = entries[other]["like"]
    return raw
