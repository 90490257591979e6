"""The settings of `dpotool train`, and the defaults that depend on other settings. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from dpotool.errors import DpotoolError
from dpotool.hub import check_name
from dpotool.losses.page import describe_losses, explain_loss, list_loss_options
from dpotool.losses.registry import BETA, get_loss
from dpotool.losses.schedules import DEFAULT_LAMBDA, DEFAULT_LAMBDA_MAX, DEFAULT_LAMBDA_MIN
from dpotool.losses.spec import SFT_WEIGHT
from dpotool.models.builtin import choose_pairs, is_builtin
from dpotool.settings.fields import COUNT, Kinds, Range, setting
from dpotool.settings.shared import DEMO, DRY_RUN, ComputeSettings, DataSettings, parse_steps

_LOSS, _STEPS, _LOG, _LORA = "Loss", "Optimisation", "Evaluation, checkpoints, logging", "LoRA"
_LAMBDA = "Lambda, the shift factor (--loss shift)"
S = TypeVar("S", bound="TrainingSettings")

LOSS_KINDS = Kinds(
    describe_losses,
    title="Losses",
    explain=explain_loss,
    options=list_loss_options,
    into="loss_options",
    without=lambda loss: frozenset() if get_loss(loss).takes_lambda else frozenset({_LAMBDA}),
)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What fills in for unset hyperparameters; chosen for a newcomer's first run, not for a paper."""

    learning_rate: float
    epochs: float
    batch_size: int


DEMO_DEFAULTS = Defaults(learning_rate=3e-4, epochs=1.0, batch_size=32)
FULL_DEFAULTS = Defaults(learning_rate=1e-6, epochs=1.0, batch_size=8)
SFT_DEFAULTS = Defaults(learning_rate=2e-5, epochs=1.0, batch_size=8)
LORA_R, LORA_ALPHA, LORA_DROPOUT, LORA_TARGETS = 16, 32.0, 0.0, "all-linear"
LORA_FACTOR = 10.0
"""An adapter learns well at about ten times the learning rate of the whole model."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(ComputeSettings, DataSettings):
    """Settings that a single run and a sweep share. None means that `fill_in` chooses what suits the model."""

    model: str = setting(
        DEMO, "Model to start from: folder, hub id or builtin:demo.", near=("model_name_or_path", "model_name")
    )
    reference: str | None = setting(
        None,
        "Reference model. The default is the model before training.",
        near=("ref_model", "ref_model_path"),
    )
    data: str | None = setting(  # type: ignore[assignment]  # resolved below; what is left open is refused
        None,
        "Preference pairs: a .jsonl, .json, .parquet or .csv file, a saved dataset folder, a hub id or builtin:demo. "
        "Only the built-in model needs no --data.",
    )
    output: str | None = setting(
        None, "Folder of the run. The default is runs/<loss>-<data>-<time>.", near=("output_dir",)
    )
    beta: float | None = setting(
        None,
        f"How strongly the model is held to the reference. The default is {BETA.default:g} for most losses "
        "(see --loss NAME --help).",
        panel=_LOSS,
        range=BETA.range,
    )
    sft_weight: float | None = setting(
        None,
        "Weight of an additional maximum-likelihood term, -log pi(chosen) per chosen token, for any loss on pairs. "
        f"The default is {SFT_WEIGHT.default:g}.",
        panel=_LOSS,
        range=SFT_WEIGHT.range,
        near=("rpo_alpha",),
    )
    lambda_min: float | None = setting(
        None, f"Lower end of a linear schedule. The default is {DEFAULT_LAMBDA_MIN:g}.", panel=_LAMBDA
    )
    lambda_max: float | None = setting(
        None,
        f"Upper end of a linear schedule. The default is {DEFAULT_LAMBDA_MAX:g}, as in the paper.",
        panel=_LAMBDA,
    )
    allow_lambda_above_one: bool = setting(False, "Allow a shift factor above 1.", panel=_LAMBDA)
    learning_rate: float | None = setting(
        None,
        f"Peak learning rate. The default is {FULL_DEFAULTS.learning_rate:g}; {SFT_DEFAULTS.learning_rate:g} for sft; "
        f"{DEMO_DEFAULTS.learning_rate:g} for preferences on builtin:demo; and {LORA_FACTOR:g} times that with --lora.",
        panel=_STEPS,
        range=Range(0, 10, includes_low=False),
        near=("lr",),
    )
    epochs: float | None = setting(
        None,
        f"Passes over the data. The default is {FULL_DEFAULTS.epochs:g}.",
        panel=_STEPS,
        range=Range(0, 1e4, includes_low=False),
        near=("num_train_epochs", "num_epochs"),
    )
    max_steps: int | None = setting(None, "Stop after N optimiser steps.", panel=_STEPS, range=COUNT)
    batch_size: int | None = setting(
        None,
        f"Pairs per device and micro-batch. The default is {FULL_DEFAULTS.batch_size}, and "
        f"{DEMO_DEFAULTS.batch_size} for "
        "preferences on builtin:demo.",
        panel=_STEPS,
        range=COUNT,
        near=("per_device_train_batch_size", "train_batch_size"),
    )
    gradient_accumulation: int = setting(
        1, "Micro-batches per optimiser step.", panel=_STEPS, range=COUNT, near=("gradient_accumulation_steps",)
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass to save memory.", panel=_STEPS
    )
    optimizer: str = setting(
        "adamw_torch",
        "Optimiser, by its name in transformers, for example paged_adamw_32bit (needs dpotool[bnb]).",
        panel=_STEPS,
        near=("optim",),
    )
    scheduler: str = setting(
        "cosine", "Learning-rate schedule, by its name in transformers.", panel=_STEPS, near=("lr_scheduler_type",)
    )
    warmup_ratio: float = setting(
        0.1,
        "Fraction of the steps in which the learning rate rises.",
        panel=_STEPS,
        range=Range(0, 1, includes_high=False),
        near=("warmup_steps",),
    )
    weight_decay: float = setting(0.0, "Weight decay.", panel=_STEPS, range=Range(0, 10))
    max_grad_norm: float = setting(
        1.0, "Clip gradients to this norm. 0 turns clipping off.", panel=_STEPS, range=Range(0, 1e6)
    )
    bf16: bool = setting(False, "Mixed precision: bfloat16 matrix products on float32 weights.", panel=_STEPS)
    eval_data: str | None = setting(
        None, "Pairs to evaluate on. The default is the test split of the data.", panel=_LOG
    )
    eval_split: str | None = setting(None, "Split of the evaluation data.", panel=_LOG)
    eval_limit: int | None = setting(None, "Evaluate on the first N rows.", panel=_LOG, range=COUNT)
    eval_steps: int | None = setting(
        None,
        "Evaluate every N steps. By default a run is evaluated before the first step and four times after it.",
        panel=_LOG,
        range=COUNT,
    )
    logging_steps: int | None = setting(
        None, "Log every N steps. By default a run logs fifty times.", panel=_LOG, range=COUNT
    )
    save_steps: int | None = setting(None, "Keep a checkpoint every N steps.", panel=_LOG, range=COUNT)
    save_at: str | None = setting(
        None, "Also keep checkpoints after these steps, for example 5,10,20, or 25%,50% of all steps.", panel=_LOG
    )
    save_total_limit: int | None = setting(
        None, "Keep only the newest N checkpoints of --save-steps.", panel=_LOG, range=COUNT, switch="save_steps"
    )
    run_name: str | None = setting(
        None, "Name of the run in the service of --report-to. The default is the path of its folder.", panel=_LOG
    )
    monitor_theory: bool = setting(
        False, "Log u, v, gradient norms and entanglement for the pairs of every step (docs/theory.md).", panel=_LOG
    )
    report_to: str = setting(
        "none",
        "Where to log besides the run folder: tensorboard, wandb or another service that transformers knows.",
        panel=_LOG,
    )
    lora: bool = setting(
        False,
        "Train a low-rank adapter and leave the model unchanged (needs dpotool[peft]).",
        panel=_LORA,
        near=("use_peft", "use_lora", "peft"),
    )
    lora_r: int | None = setting(
        None, f"Rank of the adapter. The default is {LORA_R}.", panel=_LORA, range=COUNT, switch="lora"
    )
    lora_alpha: float | None = setting(
        None,
        f"Scale of the adapter: its output is multiplied by alpha / r. The default is {LORA_ALPHA:g}.",
        panel=_LORA,
        range=Range(0, 1e6, includes_low=False),
        switch="lora",
    )
    lora_dropout: float | None = setting(
        None,
        "Dropout before the adapter. The default is 0.",
        panel=_LORA,
        range=Range(0, 1, includes_high=False),
        switch="lora",
    )
    lora_targets: str | None = setting(
        None,
        f"Layers that get an adapter: names separated by commas. The default is {LORA_TARGETS}.",
        panel=_LORA,
        switch="lora",
        near=("lora_target_modules",),
    )

    def __post_init__(self) -> None:
        """Gives the built-in model its pairs; for another one `choose_pairs` refuses to take them unasked."""
        super().__post_init__()
        if self.data is None and is_builtin(self.model):
            object.__setattr__(self, "data", DEMO)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingSettings):
    """Settings of one training run."""

    loss: str = setting(
        "dpo",
        "Loss to minimise, one of the list below. `--loss NAME --help` shows the options of that loss.",
        panel=_LOSS,
        kinds=LOSS_KINDS,
        near=("loss_type",),
    )
    loss_options: Mapping[str, float | str] | None = setting(
        None, "Options that only some losses have, by name.", is_option=False
    )
    lambda_: float | None = setting(
        None,
        f"Factor on the rejected reward. The default is {DEFAULT_LAMBDA:g}.",
        flag="--lambda",
        panel=_LAMBDA,
    )
    lambda_schedule: str | None = setting(
        None,
        "How lambda changes: constant, linear_increase or linear_decrease over the optimiser steps, or "
        "adaptive (a factor "
        "for each pair). The default is constant.",
        panel=_LAMBDA,
    )
    theory: str | None = setting(
        None, "Theory table of the training pairs, for --lambda-schedule adaptive.", panel=_LAMBDA
    )
    adaptive_rule: str | None = setting(
        None,
        "How a pair gets its factor: sign (lambda, or 2 - lambda where u < 0) or band (the centre of its "
        "band). The default is sign.",
        panel=_LAMBDA,
    )
    dry_run: bool = setting(False, DRY_RUN)
    resume: bool = setting(False, "Continue an interrupted run from its newest checkpoint.", panel=_LOG)


def fill_in(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with its unset hyperparameters resolved; these are what run.yaml records.

    A dtype of 'auto' becomes float32 here, not the checkpoint's own type: an update of 1e-6 is less than a bfloat16
    weight can show, so training one in place would round most of each step away.

    Raises:
        DpotoolError: there is no such loss.
    """
    loss = get_loss(config.loss)
    if config.model == DEMO and loss.takes_rejected:
        defaults = DEMO_DEFAULTS
    else:
        defaults = FULL_DEFAULTS if loss.takes_rejected else SFT_DEFAULTS
    rate = defaults.learning_rate * (LORA_FACTOR if config.lora else 1.0)
    return replace(
        fill_adapter(config),
        loss=loss.name,
        dtype="float32" if config.dtype == "auto" else config.dtype,
        learning_rate=rate if config.learning_rate is None else config.learning_rate,
        epochs=defaults.epochs if config.epochs is None else config.epochs,
        batch_size=defaults.batch_size if config.batch_size is None else config.batch_size,
    )


def fill_adapter(config: S) -> S:
    """Returns settings with those of an adapter resolved."""
    return replace(
        config,
        lora_r=LORA_R if config.lora_r is None else config.lora_r,
        lora_alpha=LORA_ALPHA if config.lora_alpha is None else config.lora_alpha,
        lora_dropout=LORA_DROPOUT if config.lora_dropout is None else config.lora_dropout,
        lora_targets=config.lora_targets or LORA_TARGETS,
    )


def check_config(config: TrainConfig) -> None:
    """Refuses settings that no run can use and models that are not there, before anything is made or loaded.

    Args:
        config: as it was given, before `fill_in`.

    Raises:
        DpotoolError: the settings contradict each other, or a model is not there.
    """
    config.check_switches()
    if config.bf16 and config.dtype not in ("auto", "float32"):
        raise DpotoolError(
            "mixed precision needs float32 weights",
            where="--bf16",
            got=f"--dtype {config.dtype}",
            remedy="Leave one of the two out",
        )
    parse_steps(config.save_at, n_steps=100)
    for model in (config.model, config.reference):
        if model is not None and not is_builtin(model):
            check_name(model)
    choose_pairs(config.model, config.data)
