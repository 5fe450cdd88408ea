"""A language model or encoder of Hugging Face's, taken over as it is."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from pipeline.study import hub_families, hub_files, places
from pipeline.study.base import Count, Name
from pipeline.study.model import Model


def _path(value: str) -> str:
    if not re.fullmatch(r"(input:)?\w+(\.\w+)*", value):
        raise ValueError("the dotted path of a module is expected, such as model.layers.0.mlp, or input:model.layers.0.mlp.down_proj")
    return value


ModulePath = Annotated[str, AfterValidator(_path)]


class Hub(Model):
    """A causal language model or an encoder, from a folder or the hub. Code that comes with a model is never run."""

    form: ClassVar[str] = "tokens"

    architecture: Literal["hub"]
    name: str
    """A folder with config.json and weights (model.safetensors, or pytorch_model.bin, read with weights_only), also one in the data
    folder, or the model's name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub. Without one it is the newest when the model is made, and stays that."""
    context: Count = 128
    """Tokens a sequence has at most. Attention is computed in full, so that memory grows with its square."""
    batch: Count = 8
    """Sequences that go through the model at a time where its loss is measured."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What weights are held and forwards computed in. Hooks are always recorded, and replaced, in float32."""
    modules: dict[Name, ModulePath] = {}
    """Hooks of your own, each a name with the dotted path of a module as Hugging Face calls it, for what comes out of it;
    `input:` before the path is for what goes into it. A family that is not known here needs them. What goes in at a
    `blocks.N.resid_mid` is replaced in place, as the residual stream."""

    def sources(self) -> list[str]:
        folder = places.folder(self.name)
        try:
            return [str(folder / "config.json"), *map(str, hub_files.weight_files(folder))] if folder.is_dir() else []
        except ValueError:
            return []  # problems() says what is wrong

    def problems(self) -> list[str]:
        folder = places.folder(self.name)
        if not folder.is_dir() and not hub_files.is_hub_name(self.name):
            return [f"name: there is no folder '{self.name}', and no model on the hub can be called so"]
        if folder.is_dir() and self.revision:
            return ["revision: only a model on the hub has one, and name is a folder"]
        try:
            config = self.config()
            if folder.is_dir():
                hub_files.weight_files(folder)
        except ValueError as error:
            return [f"name: {error}"]
        if config is None:
            return []
        if config["model_type"] not in hub_families.FAMILIES and not self.modules:
            return [f"modules: {hub_families.unknown_family(config)}"]
        most = hub_families.longest(config)
        return [f"context: {self.context}: the model takes at most {most} tokens"] if most and self.context > most else []

    def config(self) -> dict[str, Any] | None:
        """What its config.json says; None where it has not been fetched from the hub yet. Raises ValueError with one line."""
        folder = places.folder(self.name)
        if folder.is_dir():
            return hub_files.read_config(folder / "config.json")
        cached = hub_files.cached_config(self.name, self.revision) if hub_files.is_hub_name(self.name) else None
        return hub_files.read_config(cached) if cached else None

    def hooks(self) -> dict[str, int | None] | None:
        try:
            config = self.config()
        except ValueError:
            return None  # problems() says what is wrong
        if config is None:
            return None
        known = hub_families.hooks(config) if config["model_type"] in hub_families.FAMILIES else {}
        return {**known, **dict.fromkeys(self.modules)}

    def misnamed(self, hook: str) -> str | None:
        if hook in self.modules or re.fullmatch(rf"blocks\.\d+\.({'|'.join(hub_families.HOOKS)})", hook):
            return None
        own = f", or one of modules: {', '.join(self.modules)}" if self.modules else ""
        return f"'{hook}' cannot be a hook; allowed: blocks.N. and one of {', '.join(hub_families.HOOKS)}{own}"

    def meaning(self, hook: str) -> str:
        if place := self.modules.get(hook):
            return f"what goes into {place.removeprefix('input:')}" if place.startswith("input:") else f"what comes out of {place}"
        return hub_families.HOOKS[hook.rsplit(".", 1)[1]]

    def pretrained(self) -> bool:
        return True

    def scoring_batch(self) -> int:
        return self.batch
