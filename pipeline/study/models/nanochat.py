"""A language model in the manner of nanochat, trained here or loaded from a checkpoint of nanochat's."""

from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError, model_validator

from pipeline.study import nanochat_files
from pipeline.study.base import Count, Natural, Positive
from pipeline.study.language import Language

HOOKS = {
    "resid_pre": "the residual stream before the block",
    "attn_out": "what attention adds to the stream",
    "resid_mid": "the stream between attention and MLP",
    "mlp_hidden": "input of the MLP's last linear map, after its squared ReLU",
    "mlp_out": "what the MLP adds to the stream",
    "resid_post": "the residual stream after the block",
}
SHAPE = ("layers", "width", "heads", "kv_heads")
"""What a checkpoint decides. Its context is the most that may be asked for."""


class Nanochat(Language):
    """Pre-norm transformer: rotary positions, norms without parameters, also of queries and keys, squared ReLU, untied head,
    logits capped (nanochat, Karpathy 2025, first version)."""

    architecture: Literal["nanochat"]
    layers: Count = 4
    width: Count = 256
    """64 x layers in nanochat's own models."""
    heads: Count = 2
    """Query heads; 128 wide each in nanochat's own models."""
    kv_heads: Count | None = None
    """Heads of keys and values, each shared by as many query heads; as many as heads when not given."""
    context: Count = 64
    """Tokens a sequence has at most; with a checkpoint, its own number when not given."""
    softcap: Positive = 15.0
    """Logits z become softcap * tanh(z / softcap)."""
    checkpoint: str | None = None
    """A folder with nanochat's files model_XXXXXX.pt and meta_XXXXXX.json, also one in the data folder. The model is then taken over
    as it is: its shape comes from there, and of `training` only `batch` counts."""
    step: Natural | None = None
    """The checkpoint's step; the last one when not given."""

    def sources(self) -> list[str]:
        if self.checkpoint is None:
            return []
        return [str(file) for file in nanochat_files.files(self.checkpoint, self.step)]

    def problems(self) -> list[str]:
        """What of its shape is not the checkpoint's, or what is wrong with the checkpoint's files."""
        if self.checkpoint is None:
            return []
        try:
            shape = nanochat_files.shape(self.checkpoint, self.step)
        except ValueError as error:
            return [f"checkpoint: {error}"]
        given = {key: getattr(self, key) or self.heads for key in SHAPE}
        wrong = [
            f"{key}: {n} is given, and the checkpoint '{self.checkpoint}' has {shape[key]}" for key, n in given.items() if n != shape[key]
        ]
        if self.context > shape["context"]:
            wrong.append(f"context: {self.context}: the checkpoint was trained with {shape['context']} tokens")
        return wrong

    def hooks(self) -> dict[str, int]:
        widths = {hook: 4 * self.width if hook == "mlp_hidden" else self.width for hook in HOOKS}
        return {f"blocks.{n}.{hook}": width for n in range(self.layers) for hook, width in widths.items()}

    def meaning(self, hook: str) -> str:
        return HOOKS[hook.rsplit(".", 1)[1]]

    def pretrained(self) -> bool:
        return self.checkpoint is not None

    def settings(self) -> dict:
        settings = super().settings()
        if self.pretrained():
            settings["training"] = {"batch": self.training.batch}
        return settings

    @model_validator(mode="before")
    @classmethod
    def _shape_of_the_checkpoint(cls, values: Any) -> Any:
        """Fills in the shape that the checkpoint has. Where all of it is given, as in what an artifact was made of, no file is
        read: an artifact outlives the checkpoint it came from. Whether what is given fits is asked once it is parsed (problems)."""
        if not isinstance(values, dict) or not isinstance(values.get("checkpoint"), str):
            return values
        given = [key for key in SHAPE if key in values]
        if len(given) == len(SHAPE):
            return values
        if given:
            raise ValueError(f"{given[0]}: the checkpoint has its own; leave out {', '.join(given)}")
        try:
            step = TypeAdapter(Natural | None).validate_python(values.get("step"))
        except ValidationError:
            return values  # the field itself is told to be wrong
        try:
            shape = nanochat_files.shape(values["checkpoint"], step)
        except ValueError as error:
            raise ValueError(f"checkpoint: {error}") from None
        return {**values, **shape, "context": values.get("context", shape["context"])}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width {self.width}")
        if self.width // self.heads % 2:
            raise ValueError(f"heads: a head is {self.width // self.heads} wide, and rotary positions need an even width")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.kv_heads} does not divide heads {self.heads}")
        if not self.pretrained():
            if self.step is not None:
                raise ValueError("step: there is no checkpoint that it could be a step of")
            return self
        if idle := sorted(self.training.model_fields_set - {"batch"}):
            raise ValueError(f"training: a checkpoint is not trained here, so {', '.join(idle)} would mean nothing; only batch does")
        if self.objectives:
            raise ValueError("objectives: a checkpoint is not trained here")
        return self
