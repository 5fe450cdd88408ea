"""What language models share: the loss of the next token, and how text is fed to them piece by piece."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.base import Network

Session = Callable[[Tensor], Tensor]
"""Takes the next token ids (t,) of a text and gives the logits (vocabulary,) after the last of them."""


class LanguageModel(Network):
    """token ids (B, T) -> logits (B, T, vocabulary)."""

    context: int
    """Tokens a sequence has at most."""

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of each next token, in nats (B, T)."""
        logits = output.flatten(0, 1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, target.flatten(), reduction="none").view(target.shape)

    def session(self) -> Session:
        """A text to be fed piece by piece. This plain one reads the last `context` tokens anew each time."""
        seen = torch.empty(0, dtype=torch.int64)

        def feed(ids: Tensor) -> Tensor:
            nonlocal seen
            seen = torch.cat([seen.to(ids.device), ids])[-self.context :]
            return self(seen[None])[0, -1]

        return feed
