"""The model that is trained: loaded without dropout, with a new adapter if wanted, and compared with its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig

from dpotool.errors import DpotoolError, find_place
from dpotool.likelihood.completions import get_causal_lm
from dpotool.models.adapters import import_peft, is_adapter_folder, mark_trained_parameters
from dpotool.models.builtin import locate_model
from dpotool.models.library_calls import quiet_transformers
from dpotool.models.loading import load_model
from dpotool.progress import SILENT, Progress
from dpotool.training.config import TrainConfig, fill_adapter
from dpotool.training.dataset import PairDataset
from dpotool.training.trainer import PreferenceTrainer
from dpotool.wording import count


def load_policy(config: TrainConfig, progress: Progress = SILENT) -> nn.Module:
    """Loads the model as it is before training, without a new adapter, dropout off; it is the default reference.

    Raises:
        DpotoolError: `--lora` is given for a model that is itself an adapter.
    """
    if config.lora and is_adapter_folder(config.model):
        raise DpotoolError(
            "the model is itself an adapter, and a new one cannot stand on top of it",
            where="--lora",
            remedy="Leave --lora out to train this adapter on, or merge it into its base model first",
        )
    model = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        needs_gradients=not config.lora,
        progress=progress,
    )
    if is_adapter_folder(config.model):
        mark_trained_parameters(model)
    drop_stray_generation_settings(model, progress)
    return model


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def drop_stray_generation_settings(model: nn.Module, progress: Progress = SILENT) -> None:
    """Takes out of a generation_config.json what transformers refuses to save: better now than at the first checkpoint.

    Usually a temperature beside `do_sample: false`; training has no use for either.
    """
    inner: Any = get_causal_lm(model)
    settings = getattr(inner, "generation_config", None)
    if settings is None or _can_be_saved(settings):
        return
    stray = {name: getattr(settings, name) for name in _SAMPLING if getattr(settings, name, None) is not None}
    for name in stray:
        setattr(settings, name, None)
    if not _can_be_saved(settings):
        inner.generation_config = GenerationConfig.from_model_config(inner.config)
    said = ", ".join(f"{name} {value}" for name, value in stray.items()) or "what it says"
    progress.note(f"generation_config.json: {said} is not saved with the run, as transformers refuses to save it")


def _can_be_saved(settings: GenerationConfig) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True


def add_adapter(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Adds a new LoRA adapter, which changes nothing at step 0; raises DpotoolError for layers that are not there."""
    peft: Any = import_peft("--lora")
    config = fill_adapter(config)
    assert config.lora_targets is not None
    targets: str | list[str] = config.lora_targets
    if config.lora_targets != "all-linear":
        targets = [name.strip() for name in config.lora_targets.split(",")]
    settings = peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_transformers():
            adapted = peft.get_peft_model(model, settings)
        base = locate_model(config.model)
        # peft notes the path as the user gave it, which leads nowhere from another folder
        adapted.peft_config["default"].base_model_name_or_path = str(find_place(base)) if Path(base).exists() else base
        return adapted
    except ValueError as error:
        raise DpotoolError(
            str(error).splitlines()[0],
            where="--lora-targets",
            got=config.lora_targets,
            remedy="Name the model's own linear layers, or all-linear",
        ) from None


CHECKED_PAIRS = 8
NOISE_PER_LOGP = 1e-4
"""Relative difference allowed between two float32 computations of one sum; other batches move it by less than 1e-5."""
NOISE_PER_TOKEN_BF16 = 0.05
"""Nats a token by which two bfloat16 computations of one sum may differ."""


def check_step_zero(
    trainer: PreferenceTrainer, dataset: PairDataset, *, is_own_start: bool, progress: Progress
) -> None:
    """Compares policy and reference before the first step: one that starts from its reference has margins of zero.

    A reference of another content (`--reference`) has margins of its own; their size is shown instead.

    Raises:
        DpotoolError: the reference values are not those of the model that training starts from.
    """
    n_pairs = min(CHECKED_PAIRS, len(dataset))
    pairs = dataset.pairs[:n_pairs]
    logps = trainer.scorer.compute(pairs)
    difference = np.concatenate(
        [logps.chosen - dataset.chosen_reference[:n_pairs], logps.rejected - dataset.rejected_reference[:n_pairs]]
    )
    if not is_own_start:
        progress.note(
            "the reference is not the model that training starts from: before training, log-ratios differ from 0 by "
            f"{np.abs(difference).mean():.3g} nats on average ({count(n_pairs, 'pair')})"
        )
        return
    scale = np.abs(np.concatenate([logps.chosen, logps.rejected]))
    tokens = np.array([len(pair.chosen_ids) for pair in pairs] + [len(pair.rejected_ids) for pair in pairs])
    allowed = NOISE_PER_TOKEN_BF16 * tokens if _is_low_precision(trainer) else 1e-3 + NOISE_PER_LOGP * scale
    if not bool((np.abs(difference) <= allowed).all()):
        worst = int(np.argmax(np.abs(difference) / allowed))
        raise DpotoolError(
            "the reference does not match: before the first step the policy must equal it",
            where=f"pair {pairs[worst % n_pairs].pair_id}",
            expected=f"a log-ratio of 0 within {allowed[worst]:.2g} nats",
            got=f"{difference[worst]:.4g}",
            remedy="Clear the stored values (`dpotool cache clear`), or name the model with --reference",
        )


def _is_low_precision(trainer: PreferenceTrainer) -> bool:
    weights = {parameter.dtype for parameter in trainer.policy.parameters()}
    return bool(trainer.args.bf16) or bool(weights & {torch.bfloat16, torch.float16})
