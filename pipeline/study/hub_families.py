"""Families of Hugging Face models, and where in each of them the hooks are.

One table for all who ask: the study, which has to know names and widths from a `config.json`, and the model, which has to find
the modules. A place is the dotted path of a module: what comes out of it, or what goes into it after `input:`. The input that
is called `resid_mid` is the residual stream itself, which the block holds on to: a replaced value reaches both its uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HOOKS = {
    "resid_pre": "the residual stream before the block",
    "attn_out": "what attention adds to the stream, after its output map, biases and norm",
    "resid_mid": "the stream between attention and MLP",
    "mlp_hidden": "input of the MLP's last linear map",
    "mlp_out": "what the MLP adds to the stream, after its output map, biases and norm",
    "resid_post": "the residual stream after the block",
}
"""In BERT, RoBERTa and DistilBERT the stream is what each of a block's two layer norms gives, and what is added is added before the norm:
resid_mid = norm(resid_pre + attn_out), resid_post = norm(resid_mid + mlp_out)."""


@dataclass(frozen=True)
class Family:
    """Where the blocks of a model are and which keys of its configuration tell their number and widths."""

    blocks: str
    places: Mapping[str, str]
    """Place in a block by hook; an empty path is the block itself."""
    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    hidden: str = "intermediate_size"
    """Key of the width of `mlp_hidden`; 4 x width where it is null."""
    context: str = "max_position_embeddings"
    """Key of the number of tokens that a sequence has at most."""
    causal: bool = True
    """Whether it predicts the next token; otherwise it is an encoder, which has no loss here."""
    after_padding: bool = False
    """Whether positions are counted from `pad_token_id` + 1 on, so that so many rows of the table of positions are no token's."""


_LLAMA = {
    "resid_pre": "input:",
    "attn_out": "self_attn",
    "resid_mid": "input:post_attention_layernorm",
    "mlp_hidden": "input:mlp.down_proj",
    "mlp_out": "mlp",
    "resid_post": "",
}
_GEMMA2 = {
    **_LLAMA,
    "attn_out": "post_attention_layernorm",
    "resid_mid": "input:pre_feedforward_layernorm",
    "mlp_out": "post_feedforward_layernorm",
}
_OLMO2 = {**_GEMMA2, "resid_mid": "input:mlp"}
_GPT2 = {
    "resid_pre": "input:",
    "attn_out": "attn",
    "resid_mid": "input:ln_2",
    "mlp_hidden": "input:mlp.c_proj",
    "mlp_out": "mlp",
    "resid_post": "",
}
_NEOX = {
    "resid_pre": "input:",
    "attn_out": "attention",
    "resid_mid": "input:post_attention_layernorm",
    "mlp_hidden": "input:mlp.dense_4h_to_h",
    "mlp_out": "mlp",
    "resid_post": "",
}
_BERT = {
    "resid_pre": "input:",
    "attn_out": "attention.output.dense",
    "resid_mid": "attention.output",
    "mlp_hidden": "input:output.dense",
    "mlp_out": "output.dense",
    "resid_post": "",
}
_DISTILBERT = {
    "resid_pre": "input:",
    "attn_out": "attention.out_lin",
    "resid_mid": "sa_layer_norm",
    "mlp_hidden": "input:ffn.lin2",
    "mlp_out": "ffn.lin2",
    "resid_post": "",
}

FAMILIES = {
    **{name: Family("model.layers", _LLAMA) for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo", "smollm3")},
    **{name: Family("model.layers", _GEMMA2) for name in ("gemma2", "gemma3_text")},
    **{name: Family("model.layers", _OLMO2) for name in ("olmo2", "olmo3")},
    "gpt2": Family("transformer.h", _GPT2, "n_layer", "n_embd", "n_inner", "n_positions"),
    "gpt_neo": Family("transformer.h", _GPT2, layers="num_layers"),
    "gpt_neox": Family("gpt_neox.layers", _NEOX),
    "bert": Family("encoder.layer", _BERT, causal=False),
    **{name: Family("encoder.layer", _BERT, causal=False, after_padding=True) for name in ("roberta", "xlm-roberta", "camembert")},
    "distilbert": Family("transformer.layer", _DISTILBERT, "n_layers", "dim", "hidden_dim", causal=False),
}
"""By `model_type`, as a model's `config.json` has it."""


def _places(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Place in a block by hook. A block whose MLP reads what attention reads (GPT-NeoX, unless told otherwise) has no middle."""
    places = FAMILIES[config["model_type"]].places
    if config["model_type"] == "gpt_neox" and config.get("use_parallel_residual", True):
        return {hook: place for hook, place in places.items() if hook != "resid_mid"}
    return places


def hooks(config: Mapping[str, Any]) -> dict[str, int | None]:
    """Each hook of a model of a known family with its width; none where the configuration does not say how many blocks it has."""
    family = FAMILIES[config["model_type"]]
    layers, width = _count(config, family.layers), _count(config, family.width)
    hidden = _count(config, family.hidden)
    if hidden is None and width and config["model_type"] in ("gpt2", "gpt_neo"):
        hidden = 4 * width
    return {f"blocks.{n}.{hook}": hidden if hook == "mlp_hidden" else width for n in range(layers or 0) for hook in _places(config)}


def modules(config: Mapping[str, Any]) -> dict[str, str]:
    """Place of each hook of a model of a known family, from the model's root."""
    family = FAMILIES[config["model_type"]]
    return {
        f"blocks.{n}.{hook}": place[: len(enters)] + ".".join(part for part in (family.blocks, str(n), place[len(enters) :]) if part)
        for n in range(_count(config, family.layers) or 0)
        for hook, place in _places(config).items()
        for enters in ["input:" if place.startswith("input:") else ""]
    }


def longest(config: Mapping[str, Any]) -> int | None:
    """Tokens that a sequence has at most, where the configuration says so."""
    family = FAMILIES.get(config.get("model_type", ""))
    rows = _count(config, family.context if family else "max_position_embeddings")
    padding = config.get("pad_token_id", 1)  # RoBERTa's own, which transformers takes where none is given
    return rows - padding - 1 if rows and family and family.after_padding and isinstance(padding, int) else rows


def scales_with_length(config: Mapping[str, Any]) -> bool:
    """Whether the angles of rotary positions depend on how long a text is (LongRoPE, dynamic NTK)."""
    rotary = config.get("rope_parameters") or {}
    kinds = [one.get("rope_type") for one in (rotary, *rotary.values()) if isinstance(one, Mapping)]
    return any(kind in ("longrope", "dynamic") for kind in kinds)


def _count(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def unknown_family(config: Mapping[str, Any]) -> str:
    """What to do about a family that is not in the table."""
    return (
        f"the family '{config.get('model_type')}' is not one whose hooks are known ({', '.join(sorted(FAMILIES))}); "
        f"give its hooks under modules, each a name with the dotted path of a module, 'input:' before it for what goes into it"
    )
