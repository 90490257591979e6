"""Everything `dpotool train` can be told, and what it fills in where nothing was said. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dpotool.errors import DpotoolError
from dpotool.hub import check_name
from dpotool.losses.schedules import DEFAULT_LAMBDA, DEFAULT_LAMBDA_MAX, DEFAULT_LAMBDA_MIN
from dpotool.models.builtin import is_builtin
from dpotool.settings import (
    DEMO,
    DRY_RUN,
    ComputeSettings,
    DataSettings,
    parse_batch_tokens,
    setting,
)

_LOSS, _STEPS, _LOG, _LORA = "Loss", "Optimisation", "Evaluation, checkpoints, logging", "LoRA"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What fills in for unset hyperparameters; chosen for a newcomer's first run, not for a paper."""

    learning_rate: float
    epochs: float
    batch_size: int


DEMO_DEFAULTS = Defaults(learning_rate=3e-4, epochs=1.0, batch_size=32)
FULL_DEFAULTS = Defaults(learning_rate=1e-6, epochs=1.0, batch_size=8)
SFT_DEFAULTS = Defaults(learning_rate=2e-5, epochs=1.0, batch_size=8)
LORA_FACTOR = 10.0
"""An adapter learns well at about ten times the learning rate of the whole model."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(ComputeSettings, DataSettings):
    """What a single run and a sweep can both be told; None means: fill in what suits the model (see `fill_in`)."""

    model: str = setting(DEMO, "Model to start from: folder, hub id or builtin:demo.")
    reference: str | None = setting(None, "Reference model; without it, the model as it is before training.")
    output: str | None = setting(None, "Run folder; without it runs/<loss>-<data>-<time>.")
    beta: float | None = setting(None, "Strength of the pull to the reference; 0.1 unless told otherwise.", panel=_LOSS)
    sft_weight: float | None = setting(
        None, "Weight of an added SFT term, -log pi(chosen) per chosen token; 0 unless told otherwise.", panel=_LOSS
    )
    lambda_min: float | None = setting(
        None, f"Lower end of a linear schedule; {DEFAULT_LAMBDA_MIN:g} unless told otherwise.", panel=_LOSS
    )
    lambda_max: float | None = setting(
        None,
        f"Upper end of a linear schedule; {DEFAULT_LAMBDA_MAX:g} unless told otherwise, as in the paper.",
        panel=_LOSS,
    )
    allow_lambda_above_one: bool = setting(False, "Admit a shift factor above 1.", panel=_LOSS)
    learning_rate: float | None = setting(
        None,
        f"Peak learning rate; without it {FULL_DEFAULTS.learning_rate:g}, for sft {SFT_DEFAULTS.learning_rate:g}, for "
        f"preferences on builtin:demo {DEMO_DEFAULTS.learning_rate:g}, and {LORA_FACTOR:g} times that with --lora.",
        panel=_STEPS,
    )
    epochs: float | None = setting(
        None, f"Passes over the data; {FULL_DEFAULTS.epochs:g} unless told otherwise.", panel=_STEPS
    )
    max_steps: int | None = setting(None, "Stop after N optimiser steps.", panel=_STEPS)
    batch_size: int | None = setting(
        None,
        f"Pairs per device and micro-batch; without it {FULL_DEFAULTS.batch_size}, for preferences on builtin:demo "
        f"{DEMO_DEFAULTS.batch_size}.",
        panel=_STEPS,
    )
    gradient_accumulation: int = setting(1, "Micro-batches per optimiser step.", panel=_STEPS)
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass to save memory.", panel=_STEPS
    )
    optimizer: str = setting(
        "adamw_torch", "Any of transformers' optimisers, e.g. paged_adamw_32bit (dpotool[bnb]).", panel=_STEPS
    )
    scheduler: str = setting("cosine", "Learning-rate schedule, by transformers' name.", panel=_STEPS)
    warmup_ratio: float = setting(0.1, "Share of steps in which the learning rate rises.", panel=_STEPS)
    weight_decay: float = setting(0.0, "Weight decay.", panel=_STEPS)
    max_grad_norm: float = setting(1.0, "Clip gradients to this norm; 0 does not clip.", panel=_STEPS)
    bf16: bool = setting(False, "Mixed precision: bfloat16 matrix products on float32 weights.", panel=_STEPS)
    eval_data: str | None = setting(None, "Pairs to evaluate on; without it, the data's own test split.", panel=_LOG)
    eval_split: str | None = setting(None, "Split of the evaluation data.", panel=_LOG)
    eval_limit: int | None = setting(None, "Evaluate on the first N rows.", panel=_LOG)
    eval_steps: int | None = setting(
        None, "Evaluate every N steps; without it four times, and before the first step.", panel=_LOG
    )
    logging_steps: int | None = setting(None, "Log every N steps; without it fifty times.", panel=_LOG)
    save_steps: int | None = setting(None, "Keep a checkpoint every N steps.", panel=_LOG)
    save_at: str | None = setting(None, "Keep checkpoints after these steps too, e.g. 5,10,20.", panel=_LOG)
    monitor_theory: bool = setting(
        False, "Log u, v, gradient norms and entanglement of every step's own pairs (docs/theory.md).", panel=_LOG
    )
    report_to: str = setting("none", "tensorboard, wandb, ..., as transformers knows them.", panel=_LOG)
    lora: bool = setting(False, "Train a low-rank adapter and leave the model as it is (dpotool[peft]).", panel=_LORA)
    lora_r: int = setting(16, "Rank of the adapter.", panel=_LORA)
    lora_alpha: float = setting(32.0, "Scale of the adapter; its output is multiplied by alpha / r.", panel=_LORA)
    lora_dropout: float = setting(0.0, "Dropout before the adapter.", panel=_LORA)
    lora_targets: str = setting("all-linear", "Layers that get one: all-linear or names, comma-separated.", panel=_LORA)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingSettings):
    """Settings of one training run."""

    loss: str = setting("dpo", "Loss: dpo, shift, odpo, ipo, hinge, robust or sft.", panel=_LOSS)
    lambda_: float | None = setting(
        None,
        f"Shift factor on the rejected reward (--loss shift); without it {DEFAULT_LAMBDA:g}.",
        flag="--lambda",
        panel=_LOSS,
    )
    lambda_schedule: str | None = setting(
        None,
        "constant, linear_increase or linear_decrease over optimiser steps, or adaptive, a factor for each pair "
        "(--loss shift); without it constant.",
        panel=_LOSS,
    )
    theory: str | None = setting(
        None, "Theory table of the training pairs, for --lambda-schedule adaptive.", panel=_LOSS
    )
    adaptive_rule: str | None = setting(
        None,
        "What a pair's factor follows from: sign (of u; lambda, or 2 - lambda) or band (its centre); without it sign.",
        panel=_LOSS,
    )
    label_smoothing: float | None = setting(
        None, "Assumed share of flipped labels; without it 0 for dpo, 0.1 for robust.", panel=_LOSS
    )
    alpha: float | None = setting(None, "Scale of ODPO's offset; without it 1.", panel=_LOSS)
    score_offset: str | None = setting(
        None, "ODPO's offset of the scores: log, raw or ratio; without it log.", panel=_LOSS
    )
    dry_run: bool = setting(False, DRY_RUN)
    resume: bool = setting(False, "Continue an interrupted run from its newest checkpoint.", panel=_LOG)


def fill_in(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with its unset hyperparameters resolved; these are what run.yaml records.

    A dtype of 'auto' becomes float32 here, not the checkpoint's own type: an update of 1e-6 is less than a bfloat16
    weight can show, so training one in place would round most of each step away.
    """
    if config.model == DEMO and config.loss != "sft":
        defaults = DEMO_DEFAULTS
    else:
        defaults = SFT_DEFAULTS if config.loss == "sft" else FULL_DEFAULTS
    rate = defaults.learning_rate * (LORA_FACTOR if config.lora else 1.0)
    return replace(
        config,
        dtype="float32" if config.dtype == "auto" else config.dtype,
        learning_rate=rate if config.learning_rate is None else config.learning_rate,
        epochs=defaults.epochs if config.epochs is None else config.epochs,
        batch_size=defaults.batch_size if config.batch_size is None else config.batch_size,
    )


def check_config(config: TrainConfig) -> None:
    """Refuses numbers that no run can use and models that are not there, before anything is made or loaded."""
    positive = (
        "batch_size",
        "gradient_accumulation",
        "epochs",
        "max_steps",
        "eval_steps",
        "logging_steps",
        "save_steps",
    )
    for name in (*positive, "learning_rate", "limit", "eval_limit", "max_length", "lora_r"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise DpotoolError("must be above 0", where=f"--{name.replace('_', '-')}", got=str(value))
    parse_batch_tokens(config.batch_tokens)
    if not 0 <= config.seed < 2**32:
        raise DpotoolError("out of range", where="--seed", expected="0 to 4294967295", got=str(config.seed))
    if not 0 <= config.warmup_ratio < 1:
        raise DpotoolError(
            "out of range", where="--warmup-ratio", expected="0 to below 1", got=str(config.warmup_ratio)
        )
    if config.bf16 and config.dtype not in ("auto", "float32"):
        raise DpotoolError(
            "mixed precision needs float32 weights",
            where="--bf16",
            got=f"--dtype {config.dtype}",
            remedy="Leave one of the two out",
        )
    parse_steps(config.save_at)
    for model in (config.model, config.reference):
        if model is not None and not is_builtin(model):
            check_name(model)


def parse_steps(text: str | None) -> frozenset[int]:
    """Reads '5,10,20' as a set of step numbers."""
    try:
        return frozenset(int(part) for part in text.split(",")) if text else frozenset()
    except ValueError:
        raise DpotoolError("not a list of steps", where="--save-at", expected="e.g. 5,10,20", got=repr(text)) from None
