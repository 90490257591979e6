"""A Trainer whose checkpoints are complete and checked, and whose resumed run ends as the uninterrupted one does.

With the callbacks around its loop: a clean stop on a signal, extra checkpoints, progress, metrics.jsonl.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dpotool import interruption
from dpotool.errors import DpotoolError
from dpotool.training import checkpoints
from dpotool.wording import count


class NonFiniteError(DpotoolError):
    """The loss or a gradient is no finite number, before a step spoils the weights; or the weights themselves are."""

    def __init__(self, what: str, *, is_after_step: bool = False) -> None:
        super().__init__(what)
        self.is_after_step = is_after_step


class ResumableTrainer(Trainer):
    """Saves, finds and loads checkpoints by `training.checkpoints`; the loop is the Trainer's."""

    run_id: str = ""
    """Which run the checkpoints are of: when it was created, as run.yaml says."""
    kept_steps: frozenset[int] = frozenset()
    """Steps whose checkpoints stay, however many newer ones there are."""
    resumed_from: Path | None = None
    """The checkpoint that a run goes on from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_pairs: Counter[str] = Counter()
        self._seconds_before = 0.0
        self._began = time.monotonic()
        self.add_callback(_Restore(self._restore_progress))

    def export_sums(self) -> dict[str, Any]:
        """Returns what has been summed up since the last logged row, as JSON can hold it; a subclass knows what."""
        return {}

    def restore_sums(self, state: dict[str, Any]) -> None:
        """Takes back what `export_sums` returned."""

    def check_policy(self) -> None:
        """Raises NonFiniteError where the weights in memory are of no use; a subclass knows how to tell."""

    def resume_or_begin(self, found: checkpoints.Found) -> None:
        """Trains, resuming from a checkpoint if there is one."""
        self.resumed_from = found.path
        if found.path is not None:
            self.args.eval_on_start = False  # its row is there
        self._began = time.monotonic()
        self.train(resume_from_checkpoint=None if found.path is None else str(found.path))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Saves everything a run needs to go on, all of it or nothing.

        Raises:
            NonFiniteError: the weights are of no use; an older checkpoint stays the newest.
            DpotoolError: the disk is full.
        """
        self.check_policy()
        self.store_flos()
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        is_main = self.args.should_save
        with checkpoints.staging(folder, step, is_main=is_main) as place:
            self.accelerator.wait_for_everyone()
            self.save_model(str(place), _internal_call=True)
            self._save_optimizer_and_scheduler(str(place))
            self._save_scaler(str(place))
            self._save_rng_state(str(place))
            name = checkpoints.name_progress(self.args.process_index)
            (place / name).write_text(json.dumps(self._export_progress()), encoding="utf-8")
            self.accelerator.wait_for_everyone()
            if is_main:
                (place / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.yaml says the same
                self.state.save_to_json(str(place / checkpoints.STATE))
                checkpoints.publish(place, self.run_id)
                checkpoints.rotate(folder, self.args.save_total_limit, self.kept_steps)
        self.accelerator.wait_for_everyone()

    def _export_progress(self) -> dict[str, Any]:
        return {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "seconds": self._seconds_before + time.monotonic() - self._began,
            "n_pairs": dict(self.n_pairs),
            "sums": self.export_sums(),
        }

    def _restore_progress(self) -> None:
        """Takes up sums and counts where the checkpoint left them, so that no row covers fewer pairs."""
        if self.resumed_from is None:
            return
        state = checkpoints.read_progress(self.resumed_from, self.args.process_index)
        self._tr_loss.fill_(state["loss"])
        self._total_loss_scalar = state["total_loss"]
        self._globalstep_last_logged = state["last_logged"]
        self._initial_global_step = 0  # the closing row's means are over the whole run
        self._seconds_before = state["seconds"]
        self.n_pairs = Counter(state["n_pairs"])
        self.restore_sums(state["sums"])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a row; the closing one counts the time of all processes that the run had one after another."""
        if "train_runtime" in logs and self._seconds_before:
            seconds = logs["train_runtime"] + self._seconds_before
            for name in ("train_samples_per_second", "train_steps_per_second"):
                if name in logs:
                    logs[name] = round(logs[name] * logs["train_runtime"] / seconds, 3)
            logs["train_runtime"] = round(seconds, 4)
        super().log(logs, start_time)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trains for an epoch; after the last step there is none more to make, wherever the epoch stands."""
        if self.state.max_steps and self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _one_line(resume_from_checkpoint, "weights"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses weights that are missing or too many; one that is tied to another is in the file under that name."""
        model: Any = self.model
        places = {name: weight.data_ptr() for name, weight in model.named_parameters(remove_duplicate=False)}
        loaded = {place for name, place in places.items() if name not in load_result.missing_keys}
        missing = [name for name in load_result.missing_keys if places.get(name) not in loaded]
        wrong = [*missing, *load_result.unexpected_keys]
        if wrong:
            raise DpotoolError(
                f"{count(len(wrong), 'weight is', 'weights are')} missing or too many, {wrong[0]} among them"
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _one_line(checkpoint, "optimizer or scheduler"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _one_line(checkpoint, "random state"):
            super()._load_rng_state(checkpoint)


class _Restore(TrainerCallback):
    """Calls a function once the Trainer has set its sums to zero, and before it makes a step."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore()


@contextmanager
def _one_line(checkpoint: str | None, what: str) -> Iterator[None]:
    """Turns the errors of torch and transformers about a checkpoint that they cannot load into one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DpotoolError(
            f"its {what} cannot be loaded ({reason})",
            where=str(checkpoint),
            remedy="Delete this checkpoint: --resume then goes on from the one before",
        ) from error


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
