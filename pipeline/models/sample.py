"""Text that a language model goes on with."""

import torch

from pipeline.models.language import LanguageModel


@torch.no_grad()
def go_on(model: LanguageModel, prompt: list[int], tokens: int, top_k: int | None, temperature: float, seed: int) -> list[int]:
    """`tokens` ids that follow the ids of `prompt`, each drawn from the `top_k` likeliest (all when None) at `temperature`."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    feed, found = model.session(), []
    ids = torch.tensor(prompt, device=device)
    for _ in range(tokens):
        logits = feed(ids).double().cpu()
        best, at = logits.topk(min(top_k or len(logits), len(logits)))
        drawn = at[torch.multinomial((best / temperature).softmax(0), 1, generator=generator)]
        found.append(int(drawn))
        ids = drawn.to(device)
    return found
