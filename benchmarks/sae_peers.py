"""Training steps of other tools, for sae_step.py: each as its own trainer does it, with its own defaults, optimizer and counters included;
sparsify both with Adam, as the others, and with its default, Signum without a schedule.

    pip install -e '.[peers]'

in an environment of its own: what they bring besides (nnsight, torchvision) has to fit the build of torch there.
"""

import contextlib
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PACKAGES = {"sparsify": "sparsify", "SAELens": "sae_lens", "dictionary-learning": "dictionary_learning"}
ARCHITECTURES = {
    "sparsify": ("topk", "topk, Signum"),
    "SAELens": ("topk", "batchtopk", "relu", "jumprelu", "gated"),
    "dictionary-learning": ("topk", "batchtopk", "relu", "jumprelu", "gated"),
}
TrainingStep = Callable[[Tensor], Any]


def missing() -> list[str]:
    """Tools that are not installed."""
    return [tool for tool, package in PACKAGES.items() if importlib.util.find_spec(package) is None]


def step(tool: str, architecture: str, width: int, latents: int, k: int, rows: int) -> TrainingStep:
    """A tool's training step on a batch of `rows`."""
    make = {"sparsify": _sparsify, "SAELens": _saelens, "dictionary-learning": _dictionary_learning}[tool]
    with contextlib.redirect_stdout(io.StringIO()):
        return make(architecture, width, latents, k, rows)


def _saelens(architecture: str, width: int, latents: int, k: int, rows: int) -> TrainingStep:
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    name = {"topk": "TopK", "batchtopk": "BatchTopK", "relu": "Standard", "jumprelu": "JumpReLU", "gated": "Gated"}[architecture]
    own = {"k": k} if architecture.endswith("topk") else {}
    sae = getattr(sae_lens, f"{name}TrainingSAE")(getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=width, d_sae=latents, **own))
    logger = LoggingConfig(log_to_wandb=False)
    settings = SAETrainerConfig(total_training_samples=1000 * rows, train_batch_size_samples=rows, lr_end=3e-5, logger=logger)
    return SAETrainer(settings, sae, iter(())).step


def _dictionary_learning(architecture: str, width: int, latents: int, k: int, rows: int) -> TrainingStep:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kinds = {
        "topk": TopKTrainer,
        "batchtopk": BatchTopKTrainer,
        "relu": StandardTrainer,
        "jumprelu": JumpReluTrainer,
        "gated": GatedSAETrainer,
    }
    own = {"k": k} if architecture.endswith("topk") else {}
    trainer = kinds[architecture](steps=10**6, activation_dim=width, dict_size=latents, layer=0, lm_name="", device="cpu", **own)
    done = 1  # step 0 looks for a geometric median

    def update(x: Tensor) -> None:
        nonlocal done
        trainer.update(done, x)
        done += 1

    return update


def _sparsify(architecture: str, width: int, latents: int, k: int, rows: int) -> TrainingStep:
    """The loop of its trainer, which itself takes a language model and tokens."""
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(width, SparseCoderConfig(num_latents=latents, k=k))
    optimizer: Any
    if architecture.endswith("Signum"):
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3 / (latents / 2**14) ** 0.5), momentum=0.95)
        optimizer.train()
        schedule = None
    else:
        optimizer = torch.optim.Adam(sae.parameters(), lr=2e-4 / (latents / 2**14) ** 0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: min(1.0, (number + 1) / 1000))
    since, fired = torch.zeros(latents, dtype=torch.long), torch.zeros(latents, dtype=torch.bool)

    def update(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()
        since.add_(len(x))
        since[fired] = 0
        fired.zero_()

    return update
