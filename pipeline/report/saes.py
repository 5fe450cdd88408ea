"""What the page says of SAEs: what was measured, how they were trained, what went wrong. Of several seeds: mean and range."""

from collections.abc import Callable
from typing import Any

from pipeline.report.numbers import percent, plain, spread
from pipeline.report.results import Results, Trained

SNAPSHOT = "snapshots/step_"


def place(activations: str, hook: str, output: str | None = None) -> str:
    """How a page names a hook of some activations, and the hook that a transcoder predicts from it."""
    hooks = hook if output in (None, hook) else f"{hook} →\N{NO-BREAK SPACE}{output}"
    return hooks if activations == hook else f"{hooks} of {activations}"


def measured(results: Results) -> list[dict[str, Any]]:
    """Lines of the table of SAEs."""
    return [_measured(group, saes) for group, saes in results.groups().items()]


def _measured(group: tuple[str, str, str], saes: list[Trained]) -> dict[str, Any]:
    def over(name: str, show: Callable[[float | None], str] = plain) -> str:
        return spread([sae.metrics[name] for sae in saes], show)

    return {
        "name": group[2],
        "kind": saes[0].kind,
        "place": place(group[0], group[1], saes[0].output),
        "runs": len(saes),
        "latents": saes[0].artifact.facts["latents"],
        "fve": over("fve"),
        "l0": over("l0", lambda value: plain(value, 3)),
        "l0_above": over("l0_above", lambda value: plain(value, 3)),
        "dead": over("dead", percent),
        "loss_sae": over("loss_sae"),
        "loss_clean": over("loss_clean"),
        "score_zero": over("loss_score_zero"),
        "score_mean": over("loss_score_mean"),
    }


def training(results: Results) -> list[dict[str, Any]]:
    """Lines of the table of training runs."""
    return [_training(group, saes) for group, saes in results.groups().items()]


def _training(group: tuple[str, str, str], saes: list[Trained]) -> dict[str, Any]:
    facts = [sae.artifact.facts for sae in saes]

    def over(name: str, show: Callable[[float | None], str] = plain) -> str:
        return spread([one[name] for one in facts], show)

    held_out = "validation_fve" in facts[0]

    return {
        "name": group[2],
        "place": place(group[0], group[1], saes[0].output),
        "rows": over("rows_seen"),
        "steps": over("steps"),
        "lr": over("lr"),
        "loss": spread([sae.curve["loss"][-1].as_py() for sae in saes]),
        "fve": over("validation_fve") if held_out else "–",
        "l0": over("validation_l0", lambda value: plain(value, 3)) if held_out else "–",
        "dead": over("dead", percent),
        "window": over("dead_window"),
        "resampled": over("resampled"),
        "kept": over("kept_step") if facts[0]["kept"] == "best" else "last",
        "snapshots": ", ".join(map(plain, _snapshots(saes[0]))) or "–",
    }


def _snapshots(sae: Trained) -> list[int]:
    """Steps after which the weights were kept as well."""
    named = (file for file in sae.artifact.files if file.startswith(SNAPSHOT))
    return sorted(int(file.removeprefix(SNAPSHOT).partition(".")[0]) for file in named)


def told(results: Results) -> list[str]:
    """What went wrong in runs that went on all the same."""
    found = ((sae, sae.artifact.facts["wrong"]) for sae in results.saes)
    return [f"{sae.name} on {place(sae.activations, sae.hook, sae.output)}: {wrong}" for sae, wrong in found if wrong]


def unmeasured(results: Results) -> list[str]:
    """Of each hook of some activations that has any: what share of positions was left out, and of rows flagged."""
    places: dict[str, dict[str, dict[str, Any]]] = {}
    for sae in results.saes:
        places.setdefault(place(*sae.group[:2], sae.output), {})[sae.activations] = sae.metrics
    found = []
    for name, metrics in places.items():
        counts = [(one["left_out"], one["flagged"], one["flagged"] + one["rows"]) for one in metrics.values()]
        shares: dict[str, list[float | None]] = {
            "positions (special tokens)": [out / (out + rows) for out, _, rows in counts],
            "rows (attention sinks)": [flagged / rows for _, flagged, rows in counts],
        }
        parts = [f"{spread(values, percent)} of {what}" for what, values in shares.items() if any(values)]
        if parts:
            found.append(f"{name}: {', '.join(parts)}")
    return found
