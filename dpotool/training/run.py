"""One training run, from settings to a finished run folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from dpotool.errors import DpotoolError
from dpotool.models.library_calls import quiet_transformers
from dpotool.progress import SILENT, Progress
from dpotool.runs.atomic import writing_to
from dpotool.runs.folder import RunFolder
from dpotool.runs.locks import holding
from dpotool.training.arguments import check_arguments, count_steps, describe_steps
from dpotool.training.checkpoints import Found, find_whole, list_checkpoints, read_step, remove_unfinished
from dpotool.training.config import TrainConfig, check_config, fill_in
from dpotool.training.folder import claim, fill_folder, name_folder, reopen
from dpotool.training.objective import build_objective
from dpotool.training.preparation import prepare_trainer
from dpotool.training.resumable import NonFiniteError, StepBar, StopOnSignal
from dpotool.training.trainer import PreferenceTrainer


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A run that ended, finished or politely interrupted."""

    folder: RunFolder
    was_interrupted: bool = False


def train(config: TrainConfig, *, progress: Progress = SILENT) -> TrainResult:
    """Trains a model by one loss and leaves a run folder (docs/run-folder.md).

    Raises:
        DpotoolError: settings, data, model or output folder cannot be used, another command is at work in the folder,
            or the run turned non-finite; a run that had begun is marked as failed, and its last good checkpoint stays.
    """
    if config.resume:
        config, folder = reopen(config)
    check_config(config)
    config = fill_in(config)
    objective = build_objective(config, progress)
    check_arguments(config)
    if not config.resume:
        config, folder = name_folder(config)
    with writing_to(folder.path):
        was_there = folder.path.exists()
    try:
        with holding(folder.path, "train"):
            if claim(folder, config) == "finished":
                progress.note(f"{folder.path}: already finished")
                return TrainResult(folder)
            set_seed(config.seed)
            try:
                trainer = prepare_trainer(config, objective, folder, progress)
                return _run(trainer, config, folder, progress)
            except KeyboardInterrupt:  # before the first step, or the second signal; the first one ends after a step
                _note(folder, "interrupted")
                raise
    except BaseException:
        if not was_there:
            folder.remove_if_empty()
        raise


def _run(trainer: PreferenceTrainer, config: TrainConfig, folder: RunFolder, progress: Progress) -> TrainResult:
    """Runs the optimiser loop; every way out leaves a manifest that says what happened and weights that are good."""
    try:
        if PartialState().is_main_process:  # which wrote it, and which seals the checkpoints
            trainer.run_id = str(folder.read_manifest()["created"])
        found = _find_checkpoint(trainer, config, folder, progress) if config.resume else Found(None)
        progress.note(describe_steps(config, len(trainer.pairs)))
        _warn_of_memory(trainer, progress)
        if _step_through(trainer, config, found, progress):
            _note(folder, "interrupted")
            return TrainResult(folder, was_interrupted=True)
        layouts = trainer.count_layouts()
        fill_folder(trainer, folder)
    except NonFiniteError as error:
        _note(folder, "failed")
        raise _explain_non_finite(error, trainer, folder) from None
    except Exception:
        _note(folder, "failed")
        raise
    folder.update_manifest(status="finished", layouts=layouts)
    if config.save_steps is None:  # last: a run that is not finished needs them to go on from
        _remove_rolling_checkpoints(folder, keep=trainer.kept_steps)
    return TrainResult(folder)


def _warn_of_memory(trainer: PreferenceTrainer, progress: Progress) -> None:
    """Says before the first step that the GPU will hardly hold one, as far as a formula can tell."""
    if trainer.args.device.type != "cuda":
        return
    needed = trainer.need_on_card() / 1e9
    there = torch.cuda.get_device_properties(trainer.args.device).total_memory / 1e9
    if needed > 0.95 * there:
        progress.warn(
            f"by the formula of docs/scale.md, a step with the longest pairs takes about {needed:.0f} GB, and this GPU "
            f"has {there:.0f} GB; --lora, --gradient-checkpointing, a smaller --batch-size, or FSDP2 on several GPUs "
            "take less"
        )


def _note(folder: RunFolder, status: str) -> None:
    """Notes in run.yaml, where there is one, how a run ended. On a full disk it writes nothing."""
    with suppress(DpotoolError):
        folder.update_manifest(status=status)


def _find_checkpoint(trainer: PreferenceTrainer, config: TrainConfig, folder: RunFolder, progress: Progress) -> Found:
    """Returns the newest whole checkpoint, says what it passed over, and drops the rows logged after it."""
    found = [Found(None)]
    if PartialState().is_main_process:
        remove_unfinished(folder.path)
        found = [find_whole(folder.path, trainer.run_id, count_steps(config, len(trainer.pairs)))]
        for name, reason in found[0].passed_over.items():
            progress.warn(f"{folder.path / name}: {reason}, so this checkpoint is not used")
        folder.truncate_metrics(found[0].step if found[0].path is not None else -1)
    if PartialState().num_processes > 1:
        broadcast_object_list(found)
    if found[0].path is None:
        progress.note(f"{folder.path}: there is no complete checkpoint to continue from, so the run starts again")
    else:
        progress.note(f"continuing after step {found[0].step}")
    return found[0]


def _step_through(trainer: PreferenceTrainer, config: TrainConfig, found: Found, progress: Progress) -> bool:
    """Makes the steps; returns whether a signal ended them, or came while the last one was saved."""
    listener = StopOnSignal()
    n_steps = count_steps(config, len(trainer.pairs))
    with listener.listening(), quiet_transformers(), progress.track(f"training ({config.loss})", n_steps) as advance:
        trainer.add_callback(listener)
        trainer.add_callback(StepBar(advance))
        try:
            trainer.resume_or_begin(found)
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
    return listener.is_stopping or trainer.state.global_step < trainer.state.max_steps


def _explain_non_finite(error: NonFiniteError, trainer: PreferenceTrainer, folder: RunFolder) -> DpotoolError:
    """Says at which step a run broke and which checkpoint is the last good one; saves one if the weights still are."""
    step = trainer.state.global_step
    broken = step if error.is_after_step else step + 1
    if step and not error.is_after_step and not (folder.path / f"checkpoint-{step}").exists():
        with suppress(DpotoolError):  # the weights may be broken already, or the disk full
            trainer._save_checkpoint(trainer.policy, None)
    newest = find_whole(folder.path, trainer.run_id).path
    kept = f"{newest} is the last good checkpoint" if newest else "no checkpoint had been saved yet"
    return DpotoolError(
        f"training turned non-finite at step {broken}: {error}; {kept}",
        where=str(folder.path),
        remedy="Lower --learning-rate, lengthen --warmup-ratio, or train in float32 without --bf16",
    )


def _remove_rolling_checkpoints(folder: RunFolder, keep: frozenset[int]) -> None:
    """Removes the checkpoints that only guarded against an interruption; those asked for by step stay."""
    for path in list_checkpoints(folder.path):
        if read_step(path) not in keep:
            shutil.rmtree(path, ignore_errors=True)
