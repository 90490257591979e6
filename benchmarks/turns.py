"""Lets two trainers in two processes take turns, a step each."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness import PeakMemory
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Turns(TrainerCallback):
    """Waits before every step until it is asked for, and answers with the step's seconds, loss and peak memory."""

    def __init__(self, receive: Callable[[], object], send: Callable[..., None], losses: list[float]) -> None:
        self._receive, self._send, self._losses = receive, send, losses
        self._memory = PeakMemory()
        self._memory.restart()
        self._start = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        self._send(ready=True)
        self._wait(control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: object
    ) -> None:
        seconds = time.perf_counter() - self._start
        self._send(seconds=seconds, loss=self._losses[-1], peak_mib=self._memory.read_mib())
        self._wait(control)

    def _wait(self, control: TrainerControl) -> None:
        if self._receive() is None:
            control.should_training_stop = True
        self._start = time.perf_counter()


def take_turns(trainer: Trainer, receive: Callable[[], object], send: Callable[..., None]) -> None:
    """Trains with a `Turns` on the trainer; the losses are those that `training_step` returns."""
    losses: list[float] = []
    original = trainer.training_step

    def training_step(*args: object, **kwargs: object) -> Tensor:
        loss = original(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.training_step = training_step
    trainer.add_callback(Turns(receive, send, losses))
    trainer.train()
