"""A language model or encoder of Hugging Face's, with the hooks that our own models have.

- attention in full ("eager"): it alone has all that families ask for (Gemma 2 caps its scores), and one way is the same everywhere
- built from the configuration in the artifact, without the network; the weights are the artifact's own
- weights that are one tensor (head and embedding) are stored once
Shapes: B sequences, T tokens, C width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from pipeline.artifacts.errors import UserError
from pipeline.models import foreign, hub_fetch
from pipeline.models.hooks import Tap, untouched, watches
from pipeline.models.hub_hooks import attached, places
from pipeline.models.language import LanguageModel, Session
from pipeline.study import hub_families
from pipeline.study.models.hub import Hub as Spec


def fetch(spec: Spec, facts: dict) -> tuple["Model", dict]:
    """The model that a spec names, for a dataset with these facts, and the facts it can be built from again. Raises UserError."""
    found = hub_fetch.fetch(spec)
    facts = {**facts, "source": found.source}
    model = Model(spec, facts, found.network)
    model.eval().requires_grad_(False)
    if not model.scored or found.network.config.model_type not in hub_families.FAMILIES:
        _try(model)
    return model, facts


class Model(LanguageModel):
    """token ids (B, T) -> logits (B, T, vocabulary); of an encoder its last hidden state (B, T, C).

    The vocabulary is the model's own, rows of padding included, as Hugging Face has it.
    """

    def __init__(self, spec: Spec, facts: dict, network: PreTrainedModel | None = None) -> None:
        """`network` is given where it was just fetched; otherwise it is built with weights that have yet to be loaded."""
        super().__init__()
        self.name, self.context = spec.name, spec.context
        self.network: Any = network if network is not None else _empty(spec, facts["source"]["config"])
        config = self.network.config
        self.scored = hub_fetch.is_causal(config)
        known = hub_families.modules(config.to_dict()) if config.model_type in hub_families.FAMILIES else {}
        self.places = places(self.network, {**known, **spec.modules})
        self._check(spec, facts)
        self._tied = _tied(self)
        self.register_state_dict_post_hook(_drop_tied)
        self.register_load_state_dict_pre_hook(_add_tied)

    def _check(self, spec: Spec, facts: dict) -> None:
        rows = self.network.get_input_embeddings().weight.shape[0]
        if facts["vocabulary"] > rows:
            raise UserError(
                f"the dataset's vocabulary has {facts['vocabulary']:,} tokens, and that of the model '{spec.name}' has {rows:,}; "
                "give the dataset the model's own tokenizer"
            )
        most = hub_families.longest(self.network.config.to_dict())
        if most and spec.context > most:
            raise UserError(f"context: {spec.context}: the model '{spec.name}' takes at most {most} tokens")

    def require(self, hooks: list[str]) -> None:
        """Raises UserError, listing those there are, when the model lacks one of these hooks."""
        there = [place.hook for place in self.places]
        if missing := [hook for hook in hooks if hook not in there]:
            raise UserError(f"the model '{self.name}' has no hook {', '.join(missing)}; it has: {', '.join(there)}")

    def compute(self, ids_BT: Tensor, tap: Tap) -> Tensor:
        with attached([] if tap is untouched else [place for place in self.places if watches(tap, place.hook)], tap):
            output = self.network(input_ids=ids_BT, **({"use_cache": False} if self.scored else {}))
        return output.logits if self.scored else output.last_hidden_state

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        self._causal("loss")
        return super().losses(output, target)

    def session(self) -> Session:
        """A text to be fed piece by piece: keys and values are kept while it fits the context, and after that the last
        `context` tokens are read anew each time. All is where angles of positions depend on the length of the text."""
        self._causal("text to go on with")
        if hub_families.scales_with_length(self.network.config.to_dict()):
            return super().session()
        seen, kept = torch.empty(0, dtype=torch.int64), None

        def feed(ids: Tensor) -> Tensor:
            nonlocal seen, kept
            seen = torch.cat([seen.to(ids.device), ids])
            if len(seen) > self.context:
                seen = seen[-self.context :]
                return self(seen[None])[0, -1]
            output = self.network(input_ids=ids[None], past_key_values=kept, use_cache=True)
            kept = output.past_key_values
            return output.logits[0, -1]

        return feed

    def _causal(self, what: str) -> None:
        if not self.scored:
            raise UserError(f"the model '{self.name}' is an encoder, which predicts no next token, so it has no {what}")


def _try(model: Model) -> None:
    """Raises UserError where a sequence of `context` tokens does not go through the model: what its configuration calls the longest
    may count more than tokens, such as positions that padding has. Not asked of causal families in the table, whose numbers are of
    tokens: the models may be large."""
    padding = model.network.config.to_dict().get("pad_token_id")
    ids = torch.full((1, model.context), int(padding == 0))  # of a token that is not padding, which may have no position
    with foreign.reading(f"context: {model.context}: the model '{model.name}' cannot read a text of so many tokens"), torch.no_grad():
        model(ids)


def _empty(spec: Spec, config: dict) -> PreTrainedModel:
    """A model of this configuration; its weights are whatever was in memory."""
    with hub_fetch.readable(spec.name), no_init_weights():
        parsed = AutoConfig.for_model(**config)
        network = hub_fetch.auto(parsed).from_config(
            parsed,
            dtype=getattr(torch, spec.dtype),
            attn_implementation="eager",
            trust_remote_code=False,
            **hub_fetch.without_pooler(parsed),
        )
        network.tie_weights()
    return network


def _tied(model: Model) -> dict[str, str]:
    """Parameters that are another one under a second name, with the first."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: kept for name, parameter in named if (kept := first.setdefault(id(parameter), name)) != name}


def _drop_tied(model: Any, weights: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name in model._tied:
        weights.pop(prefix + name, None)


def _add_tied(model: Any, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, kept in model._tied.items():
        if prefix + kept in weights:
            weights.setdefault(prefix + name, weights[prefix + kept])
