"""The peers of sae_quality.py: each trains an SAE on the same batches, with its own published defaults.

The loops are those of the tools' own trainers, as far as those can be called without a language model.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

TOOLS = (
    "SAELens",
    "dictionary-learning",
    "dictionary-learning, free decoder",
    "dictionary-learning, p-anneal",
    "sparsify",
    "sparsify, Adam",
)
Train = Callable[[Any], Callable[[Tensor], tuple[Tensor, Tensor]]]


def installed() -> tuple[dict[str, dict[str, Train]], dict[str, str]]:
    """What trains, by architecture and tool; and of tools that are not there, why."""
    found: dict[str, dict[str, Train]] = {"topk": {}, "batchtopk": {}, "jumprelu": {}, "relu": {}, "gated": {}}
    missing = {}
    for name, module, tools in (
        ("SAELens", "sae_lens", {"SAELens": (saelens, found)}),
        (
            "dictionary-learning",
            "dictionary_learning",
            {
                "dictionary-learning": (dictionary_learning, found),
                "dictionary-learning, free decoder": (free_decoder, ["relu"]),
                "dictionary-learning, p-anneal": (p_anneal, ["relu"]),
            },
        ),
        ("sparsify", "sparsify", {"sparsify": (signum, ["topk"]), "sparsify, Adam": (adam, ["topk"])}),
    ):
        try:
            import_module(module)
        except ImportError as error:
            missing[name] = str(error)
            continue
        for tool, (trains, architectures) in tools.items():
            for architecture in architectures:
                found[architecture][tool] = trains
    return found, missing


def warmup(default: int, steps: int) -> int:
    """Steps of a warm-up that is `default` long, shortened where the run is short."""
    return min(default, steps // 20)


def saelens(task: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """SAELens 6: its trainer, learning rate 3e-4 throughout. JumpReLU: the loss that is quadratic in the distance from a target L0."""
    from sae_lens import config
    from sae_lens.saes import batchtopk_sae, gated_sae, jumprelu_sae, standard_sae, topk_sae
    from sae_lens.training.sae_trainer import SAETrainer

    common = {"d_in": task.rows_ND.shape[1], "d_sae": task.latents, "normalize_activations": "expected_average_only_in"}
    if task.architecture == "topk":
        sae = topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(**common, k=task.k))
    elif task.architecture == "batchtopk":
        sae = batchtopk_sae.BatchTopKTrainingSAE(batchtopk_sae.BatchTopKTrainingSAEConfig(**common, k=task.k))
    elif task.architecture in ("relu", "gated"):
        l1 = {"l1_coefficient": task.l1(mean_square=task.rows_ND.shape[1]), "l1_warm_up_steps": warmup(1000, task.steps)}
        if task.architecture == "relu":
            sae = standard_sae.StandardTrainingSAE(standard_sae.StandardTrainingSAEConfig(**common, **l1))
        else:
            sae = gated_sae.GatedTrainingSAE(gated_sae.GatedTrainingSAEConfig(**common, **l1))
    else:
        mode = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": task.k}
        sae = jumprelu_sae.JumpReLUTrainingSAE(jumprelu_sae.JumpReLUTrainingSAEConfig(**common, **mode))
    settings = config.SAETrainerConfig(
        total_training_samples=task.steps * task.batch, train_batch_size_samples=task.batch, lr_end=3e-5, n_batches_for_norm_estimate=20
    )

    def batches() -> Any:
        yield from task.batches()
        yield from task.batches()  # the first batches are read once more, for the scale

    trained = SAETrainer(settings, sae, batches()).fit().eval()

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        if task.architecture == "batchtopk":  # what its JumpReLU SAE does with the learned threshold
            norms_M = trained.W_dec.norm(dim=1)
            f = ((trained.process_sae_in(x) @ trained.W_enc + trained.b_enc) * norms_M).relu()
            f = f * (f > trained.topk_threshold)
        else:
            f = trained.encode(x)
        return f, trained.decode(f)

    return predict


def dictionary_learning(task: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """dictionary-learning: its trainers, as its demo runs them (activations scaled to a mean squared norm of 1, the last fifth decays)."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    if task.architecture in ("relu", "gated"):
        kind = StandardTrainer if task.architecture == "relu" else GatedSAETrainer
        return _trained(task, kind, l1_penalty=task.l1(mean_square=1.0), sparsity_warmup_steps=warmup(2000, task.steps))
    if task.architecture == "jumprelu":
        return _trained(task, JumpReluTrainer, target_l0=task.k, sparsity_warmup_steps=warmup(2000, task.steps))
    kind = TopKTrainer if task.architecture == "topk" else BatchTopKTrainer
    return _trained(task, kind, k=task.k, threshold_start_step=warmup(1000, task.steps))


def free_decoder(task: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """dictionary-learning's other ReLU recipe: a free decoder, whose norms weigh the penalty."""
    from dictionary_learning.dictionary import AutoEncoderNew
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate

    more = {"dict_class": AutoEncoderNew, "l1_penalty": task.l1(mean_square=1.0), "sparsity_warmup_steps": warmup(2000, task.steps)}
    return _trained(task, StandardTrainerAprilUpdate, **more)


def p_anneal(task: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """dictionary-learning's ReLU SAE whose penalty goes from an L1 norm towards an L0.2 one, as its demo sets it."""
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer

    more = {"sparsity_function": "Lp^p", "p_end": 0.2, "anneal_start": warmup(10000, task.steps)}
    more |= {"initial_sparsity_penalty": task.l1(mean_square=1.0), "sparsity_warmup_steps": warmup(2000, task.steps)}
    return _trained(task, PAnnealTrainer, **more)


def _trained(task: Any, kind: Any, **more: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    scale = task.rows_ND.square().sum(1).mean().sqrt().item()
    common = {"steps": task.steps, "activation_dim": task.rows_ND.shape[1], "dict_size": task.latents, "layer": 3, "lm_name": "stories15M"}
    common |= {"warmup_steps": warmup(1000, task.steps), "decay_start": int(0.8 * task.steps), "seed": task.seed, "device": "cpu"}
    trainer = kind(**common, **more)
    for step, x in enumerate(task.batches()):
        trainer.update(step, x / scale)
    if hasattr(trainer.ae, "scale_biases"):
        trainer.ae.scale_biases(scale)
    else:
        trainer.ae.encoder.bias.data *= scale
        trainer.ae.decoder.bias.data *= scale
    trainer.ae.eval()

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        f = trainer.ae.encode(x)
        return f, trainer.ae.decode(f)

    return predict


def signum(task: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """sparsify with its default optimizer, schedule-free sign descent."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    def optimizer(parameters: Any) -> tuple[Any, None]:
        found = ScheduleFreeWrapper(SignSGD(parameters, lr=5e-3 / (task.latents / 2**14) ** 0.5), momentum=0.95)
        found.train()
        return found, None

    return _sparsify(task, optimizer)


def adam(task: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """sparsify with Adam, as it sets it."""
    from transformers import get_linear_schedule_with_warmup

    def optimizer(parameters: Any) -> tuple[Any, Any]:
        found = torch.optim.Adam(parameters, lr=2e-4 / (task.latents / 2**14) ** 0.5)
        return found, get_linear_schedule_with_warmup(found, warmup(1000, task.steps), task.steps)

    return _sparsify(task, optimizer)


def _sparsify(task: Any, make: Callable[[Any], tuple[Any, Any]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(task.rows_ND.shape[1], SparseCoderConfig(num_latents=task.latents, k=task.k))
    optimizer, schedule = make(sae.parameters())
    for step, x in enumerate(task.batches()):
        if step == 0:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        if schedule:
            schedule.step()
    if schedule is None:
        optimizer.eval()

    def predict(x: Tensor) -> tuple[Tensor, Tensor]:
        values, index, _ = sae.encode(x)
        return torch.zeros(len(x), task.latents).scatter(1, index, values), sae.decode(values, index)

    return predict
