"""Translates a TrainConfig into transformers' TrainingArguments."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.training_args import ParallelMode

from dpotool.errors import DpotoolError
from dpotool.models.loading import resolve_device
from dpotool.training.config import TrainConfig
from dpotool.wording import count

LOGS_PER_RUN = 50
EVALUATIONS_PER_RUN = 4
ROLLING_SAVE_STEPS = 200
"""Without --save-steps there is one checkpoint to resume from, which is removed when the run has finished."""


def build_training_arguments(config: TrainConfig, folder: Path, n_pairs: int, *, has_eval: bool) -> TrainingArguments:
    """Returns the Trainer's arguments; unset intervals are spread evenly over the run's steps."""
    assert config.learning_rate is not None and config.epochs is not None and config.batch_size is not None
    n_steps = count_steps(config, n_pairs)
    device = resolve_device(config.device)
    with one_line_refusals():
        arguments = TrainingArguments(
            output_dir=str(folder),
            learning_rate=config.learning_rate,
            num_train_epochs=config.epochs,
            max_steps=config.max_steps or -1,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            **_checkpointing(config),
            optim=config.optimizer,
            lr_scheduler_type=config.scheduler,
            warmup_steps=int(config.warmup_ratio * n_steps),  # rounded down, so that even one step moves the weights
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.bf16,
            use_cpu=device.type == "cpu",
            seed=config.seed,
            eval_strategy="steps" if has_eval else "no",
            eval_on_start=has_eval,
            eval_steps=config.eval_steps or max(1, n_steps // EVALUATIONS_PER_RUN),
            logging_strategy="steps",
            logging_steps=config.logging_steps or max(1, n_steps // LOGS_PER_RUN),
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=config.save_steps or ROLLING_SAVE_STEPS,
            save_total_limit=config.save_total_limit if config.save_steps else 1,
            run_name=config.run_name,
            report_to=config.report_to.split(","),
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            accelerator_config={"non_blocking": device.type == "cuda"},
        )
        _keep_to_one_device(arguments, device)
        return arguments


def _keep_to_one_device(arguments: TrainingArguments, device: torch.device) -> None:
    """Makes a process without a launcher train on the chosen GPU and on no other.

    transformers takes the first GPU, whichever was named, and cuts batches up among all that are there (DataParallel);
    rows of pairs cannot be cut up. It has no setting for this.
    """
    if device.type != "cuda" or arguments.parallel_mode is ParallelMode.DISTRIBUTED:
        return
    index = device.index or 0
    torch.cuda.set_device(index)  # what accelerate calls "cuda" from now on
    vars(arguments)["_setup_devices"] = torch.device("cuda", index)
    arguments._n_gpu = 1


def check_arguments(config: TrainConfig) -> None:
    """Refuses what the Trainer would refuse only after hours: services and optimisers unknown or not installed.

    Raises:
        DpotoolError: a setting is none that transformers can use here.
    """
    arguments = build_training_arguments(config, Path(config.output or "runs"), n_pairs=1, has_eval=False)
    with one_line_refusals():
        get_reporting_integration_callbacks(arguments.report_to)
        missing = set(arguments.report_to or ()) - set(get_available_reporting_integrations())
        if missing:
            raise ImportError(f"the package of {', '.join(sorted(missing))} is not installed")
        with suppress(ValueError, TypeError, AttributeError):  # some ask for the model, which is not loaded yet
            Trainer.get_optimizer_cls_and_kwargs(arguments)


@contextmanager
def one_line_refusals() -> Iterator[None]:
    """Turns the errors of transformers about settings it cannot use into one line.

    Raises:
        DpotoolError: instead of the error of transformers.
    """
    try:
        yield
    except (ValueError, ImportError, TypeError, RuntimeError) as error:
        raise DpotoolError(
            f"transformers refuses the settings ({str(error).strip().splitlines()[0]})",
            where="train",
            remedy="See --optimizer, --scheduler, --report-to and --bf16",
        ) from None


def _checkpointing(config: TrainConfig) -> dict[str, Any]:
    """Returns the switch for recomputing activations, under the name that the installed transformers has for it."""
    if not config.gradient_checkpointing:
        return {}
    names = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def count_steps(config: TrainConfig, n_pairs: int) -> int:
    """Returns the number of optimiser steps, for warm-up and intervals; how long to train is counted by the Trainer."""
    if config.max_steps:
        return config.max_steps
    assert config.batch_size is not None and config.epochs is not None
    micro_batches = math.ceil(n_pairs / (config.batch_size * PartialState().num_processes))
    return max(1, math.ceil(config.epochs * math.ceil(micro_batches / config.gradient_accumulation)))


def describe_steps(config: TrainConfig, n_pairs: int) -> str:
    """Returns a line that says what training is about to do: processes, pairs in a step, steps, learning rate."""
    assert config.batch_size is not None
    n_processes = PartialState().num_processes
    n_steps = count_steps(config, n_pairs)
    processes = count(n_processes, "process", "processes")
    factors = [f"{config.batch_size} at a time"]
    factors += [f"{config.gradient_accumulation} times"] if config.gradient_accumulation > 1 else []
    factors += [f"on {processes}"] if n_processes > 1 else []
    size = config.batch_size * config.gradient_accumulation * n_processes
    in_a_step = f"{count(size, 'pair')} in a step" + (f" ({', '.join(factors)})" if len(factors) > 1 else "")
    return (
        f"training in {processes}: {count(n_pairs, 'pair')}, {in_a_step}, {count(n_steps, 'step')}, "
        f"learning rate {config.learning_rate:g} at its peak ({config.scheduler})"
    )


def count_evaluations(n_steps: int, every: int) -> int:
    """Returns how often the Trainer evaluates: before the first step, every so many, and after the last step."""
    return 1 + math.ceil(n_steps / every)
