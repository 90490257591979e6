"""Callbacks of the trainer: a clean stop on a signal, extra checkpoints, progress, metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpotool import interruption
from dpotool.training.resumable import NonFiniteError


class MetricsWriter(TrainerCallback):
    """Hands every logged row, with its step, to a function that appends it to metrics.jsonl."""

    def __init__(self, append: Callable[[dict[str, Any]], None]) -> None:
        self._append = append

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and any(name.endswith("loss") for name in logs):
            self._append({"step": state.global_step, **logs})


class GradientGuard(TrainerCallback):
    """Stops before an optimiser step whose gradient is no finite number would spoil the weights."""

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None] if model is not None else []
        if gradients and not bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients))):
            raise NonFiniteError("the gradient's norm is not a number")


class CheckpointAt(TrainerCallback):
    """Saves a checkpoint after each of the given steps, beside the regular ones."""

    def __init__(self, steps: frozenset[int]) -> None:
        self._steps = steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_save = control.should_save or state.global_step in self._steps
        return control


class StepBar(TrainerCallback):
    """Advances a progress bar by one each optimiser step, and at once by the steps that a resumed run has made."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance(1)


class StopOnSignal(TrainerCallback):
    """At the first signal finishes the step, saves a checkpoint and stops. A second signal stops at once."""

    def __init__(self) -> None:
        self.is_stopping = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.is_stopping and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        return control

    @contextmanager
    def listening(self) -> Iterator[StopOnSignal]:
        """Listens while the block runs; does nothing outside the main thread, where signals cannot be caught."""
        interruption.begin_work()
        kept = interruption.replace_handlers(self._handle)
        try:
            yield self
        finally:
            interruption.restore_handlers(kept)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.is_stopping:
            interruption.interrupt(number)
        self.is_stopping = True
