"""DPO steps by dpotool and by TRL on a model that is there already, each step timed until the device is done."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from device_models import free, measuring_peak, synchronize
from torch import Tensor, nn
from training_methods import BETA, LEARNING_RATE, OPTIMIZER, SEED
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import TrainingArguments

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.scorer import Scorer
from dpotool.settings.shared import AUTO
from dpotool.training.arguments import build_training_arguments
from dpotool.training.config import TrainConfig, fill_in
from dpotool.training.dataset import PairDataset
from dpotool.training.objective import build_objective
from dpotool.training.resumable import GradientGuard
from dpotool.training.trainer import PreferenceTrainer

N_WARM_UP = 2
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@dataclass(frozen=True, slots=True)
class StepSetting:
    """One way of training."""

    batch_size: int
    n_steps: int
    is_mixed: bool
    """bfloat16 products by autocast."""
    recomputes: bool
    """Activations are computed again in the backward pass."""


@dataclass(slots=True)
class Steps:
    """What a run of steps came to."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    peak_gib: float = 0.0

    @property
    def seconds_a_step(self) -> float:
        timed = self.seconds[min(N_WARM_UP, len(self.seconds) - 1) :]
        return sum(timed) / len(timed)


class _Clock(TrainerCallback):
    """Notes when each step was over, everything up to the next one's beginning included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        self._note()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        self._note()

    def _note(self) -> None:
        synchronize(self._device)
        self.times.append(time.perf_counter())


def add_adapter(model: nn.Module) -> nn.Module:
    """Returns the model with a LoRA adapter on all its linear layers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    return get_peft_model(model, LoraConfig(**LORA))


def train_dpotool(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair], setting: StepSetting
) -> Steps:
    """dpotool's trainer, with reference values as `train` has them from the store."""
    device = next(model.parameters()).device
    mixed = torch.bfloat16 if setting.is_mixed else None
    scorer = Scorer(model, batch_tokens=AUTO, autocast=mixed, fingerprint="of no use here")
    reference = compute_pair_logps(model, pairs, batch_tokens=AUTO, autocast=mixed)
    with tempfile.TemporaryDirectory() as folder:
        config = fill_in(
            TrainConfig(
                model="random",
                data="random",
                output=folder,
                loss="dpo",
                beta=BETA,
                learning_rate=LEARNING_RATE,
                scheduler="constant",
                warmup_ratio=0.0,
                optimizer=OPTIMIZER,
                seed=SEED,
                batch_size=setting.batch_size,
                max_steps=setting.n_steps,
                logging_steps=setting.n_steps,
                gradient_checkpointing=setting.recomputes,
                bf16=setting.is_mixed,
                device=str(device),
            )
        )
        arguments = build_training_arguments(config, Path(folder), len(pairs), has_eval=False)
        arguments.save_strategy = SaveStrategy.NO
        trainer = PreferenceTrainer(
            scorer,
            arguments,
            build_objective(config),
            train_dataset=PairDataset(pairs, reference.chosen, reference.rejected),
            eval_dataset=None,
            tokenizer=tokenizer,
            callbacks=[GradientGuard()],
            keeps_evaluations=False,
        )
        return _run(trainer, device)


def train_trl(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair], setting: StepSetting
) -> Steps:
    """TRL's DPOTrainer with its fused head and a reference computed beforehand."""
    from training_methods import build_trl_trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trl_trainer(
            model,
            tokenizer,
            pairs,
            folder,
            batch_size=setting.batch_size,
            n_steps=setting.n_steps,
            bf16=setting.is_mixed,
            gradient_checkpointing=setting.recomputes,
            gradient_checkpointing_kwargs={"use_reentrant": False} if setting.recomputes else None,
            precompute_ref_batch_size=8,
            logging_steps=setting.n_steps,
        )
        return _run(trainer, next(model.parameters()).device)


def _run(trainer: Trainer, device: torch.device) -> Steps:
    losses: list[Tensor] = []
    original: Any = trainer.training_step

    def training_step(*args: object, **kwargs: object) -> Tensor:
        loss = original(*args, **kwargs)
        losses.append(loss.detach())
        return loss

    trainer.training_step = training_step  # type: ignore[method-assign]
    clock = _Clock(device)
    trainer.add_callback(clock)
    with measuring_peak(device) as peak:
        trainer.train()
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return Steps([loss.item() for loss in losses], seconds, peak["peak GiB"])


def train_and_restore(
    train: Callable[..., Steps],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TokenizedPair],
    setting: StepSetting,
) -> Steps:
    """Trains, and puts weights and forward functions back as they were, for the next one to start from."""
    trained = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}
    modules = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    try:
        return train(model, tokenizer, pairs, setting)
    finally:
        model.zero_grad(set_to_none=True)
        if "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")  # TRL's copy of the adapter it was given
        for module in modules:
            for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
                module.__dict__.pop(name, None)  # or the next trainer would take it for prepared: no mixed precision
            disable = getattr(module, "gradient_checkpointing_disable", None)
            if disable is not None:
                disable()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in trained:
                    parameter.copy_(trained[name])
                    parameter.requires_grad_(True)
        free(next(model.parameters()).device)
