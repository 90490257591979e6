"""One training run, from settings to a finished run folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from dpotool.errors import DpotoolError
from dpotool.models.library_calls import quiet_transformers
from dpotool.progress import SILENT, Progress
from dpotool.runs.folder import RunFolder
from dpotool.training.arguments import check_arguments, count_steps
from dpotool.training.callbacks import StepBar, StopOnSignal
from dpotool.training.config import TrainConfig, check_config, fill_in, parse_steps
from dpotool.training.folder import fill_folder, open_folder
from dpotool.training.objective import build_objective
from dpotool.training.preparation import prepare_trainer
from dpotool.training.trainer import NonFiniteError, PreferenceTrainer


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A run that ended, finished or politely interrupted."""

    folder: RunFolder
    was_interrupted: bool = False


def train(config: TrainConfig, *, progress: Progress = SILENT) -> TrainResult:
    """Trains a model by one loss and leaves a run folder (DESIGN, "Run folder").

    Raises:
        DpotoolError: settings, data, model or output folder cannot be used, or the run turned non-finite; a run that
            had begun is marked as failed, and its last good checkpoint stays.
    """
    was_there = config.output is not None and Path(config.output).exists()
    config, folder = open_folder(config) if config.resume else (config, None)
    config = fill_in(config)
    check_config(config)
    objective = build_objective(config, progress)
    check_arguments(config)
    if folder is None:
        config, folder = open_folder(config)
    elif folder.read_manifest()["status"] == "finished":
        progress.note(f"{folder.path}: already finished")
        return TrainResult(folder)
    set_seed(config.seed)
    try:
        trainer = prepare_trainer(config, objective, folder, progress)
    except BaseException:
        if not was_there:
            folder.remove_if_empty()
        raise
    return _run(trainer, config, folder, progress)


def _run(trainer: PreferenceTrainer, config: TrainConfig, folder: RunFolder, progress: Progress) -> TrainResult:
    """Runs the optimiser loop; every way out leaves a manifest that says what happened and weights that are good."""
    checkpoint = get_last_checkpoint(str(folder.path)) if config.resume else None
    if config.resume:
        step = int(checkpoint.rpartition("-")[2]) if checkpoint else -1
        folder.truncate_metrics(step)
        progress.note(f"continuing after step {max(step, 0)}")
    try:
        _step_through(trainer, config, checkpoint, progress)
    except NonFiniteError as error:
        folder.update_manifest(status="failed")
        raise _explain_non_finite(error, trainer, folder) from None
    except KeyboardInterrupt:  # the second signal; the first one ends after a step
        folder.update_manifest(status="interrupted")
        raise
    except BaseException:
        folder.update_manifest(status="failed")
        raise
    if trainer.state.global_step < trainer.state.max_steps:
        folder.update_manifest(status="interrupted")
        return TrainResult(folder, was_interrupted=True)
    layouts = trainer.count_layouts()
    fill_folder(trainer, folder)
    folder.update_manifest(status="finished", layouts=layouts)
    if config.save_steps is None:  # last: a run that is not finished needs them to go on from
        _remove_rolling_checkpoints(folder, keep=parse_steps(config.save_at))
    return TrainResult(folder)


def _step_through(trainer: PreferenceTrainer, config: TrainConfig, checkpoint: str | None, progress: Progress) -> None:
    listener = StopOnSignal()
    n_steps = count_steps(config, len(trainer.pairs))
    with listener.listening(), quiet_transformers(), progress.track(f"training ({config.loss})", n_steps) as advance:
        trainer.add_callback(listener)
        trainer.add_callback(StepBar(advance))
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except ImportError as error:  # transformers looks for an optimiser's package only now
            raise DpotoolError(str(error).splitlines()[0], where="train") from None
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise DpotoolError(
                "out of memory in a training step",
                where="train",
                remedy="Lower --batch-size (raise --gradient-accumulation to keep the step), or use "
                "--gradient-checkpointing, --lora or a smaller --max-length",
            ) from None


def _explain_non_finite(error: NonFiniteError, trainer: PreferenceTrainer, folder: RunFolder) -> DpotoolError:
    """Says at which step a run broke and which checkpoint is the last good one; saves one if the weights still are."""
    step = trainer.state.global_step
    logps = trainer.scorer.compute(trainer.pairs[:4])
    if step and bool(torch.isfinite(torch.tensor([*logps.chosen, *logps.rejected])).all()):
        trainer._save_checkpoint(trainer.policy, None)
    newest = get_last_checkpoint(str(folder.path))
    kept = f"{newest} is the last good checkpoint" if newest else "no checkpoint had been saved yet"
    return DpotoolError(
        f"training turned non-finite at step {step + 1}: {error}; {kept}",
        where=str(folder.path),
        remedy="Lower --learning-rate, lengthen --warmup-ratio, or train in float32 without --bf16",
    )


def _remove_rolling_checkpoints(folder: RunFolder, keep: frozenset[int]) -> None:
    """Removes the checkpoints that only guarded against an interruption; those asked for by step stay."""
    for path in folder.path.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) not in keep:
            shutil.rmtree(path, ignore_errors=True)
