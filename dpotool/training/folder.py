"""A training run's folder: claimed before any work, resumed with recorded settings, filled in one move at the end."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import Trainer

from dpotool.errors import DpotoolError
from dpotool.interruption import deferred
from dpotool.models.builtin import choose_pairs
from dpotool.models.library_calls import quiet_transformers
from dpotool.runs.atomic import ensure_writable, share_weights, writing_to
from dpotool.runs.checked import read_settings
from dpotool.runs.folder import RunFolder, shorten_name
from dpotool.runs.locks import LOCK_NAME, refuse_held
from dpotool.training.config import TrainConfig, TrainingSettings

_NOT_SETTINGS = {"resume", "output", "trust_remote_code"}


def name_folder(config: TrainConfig) -> tuple[TrainConfig, RunFolder]:
    """Returns the configuration with its folder named, and the folder, which may be missing."""
    chosen = [config.output or str(_new_name(config))]
    if PartialState().num_processes > 1:
        broadcast_object_list(chosen)  # the name holds the time of day, which the processes need not agree on
    folder = RunFolder(Path(chosen[0]))
    if int(os.environ.get("RANK", "0")) == 0:  # set by every launcher, also before accelerate has joined the processes
        _refuse_what_is_there(folder)
    return replace(config, output=chosen[0]), folder


def claim(folder: RunFolder, config: TrainConfig) -> str | None:
    """Makes sure that a folder that this process holds can be used; returns the status of the run to be resumed.

    What a run that failed at once left in a new run's folder may go. Raises DpotoolError where the folder holds
    something else, or cannot be written.
    """
    if config.resume:
        ensure_writable(folder.path)
        return str(folder.read_manifest()["status"])
    if int(os.environ.get("RANK", "0")) == 0:
        if _holds_only_a_failure(folder):
            folder.manifest_path.unlink()
        _refuse_what_is_there(folder)
        ensure_writable(folder.path)
    return None


def _refuse_what_is_there(folder: RunFolder) -> None:
    """Refuses a folder that is not empty; if another process works in it, the lock's error names that one."""
    with writing_to(folder.path):
        if not folder.path.exists() or _holds_only_a_failure(folder):
            return
    if not folder.path.is_dir() or any(path.name != LOCK_NAME for path in folder.path.iterdir()):
        refuse_held(folder.path)
        raise DpotoolError(
            "the output folder is not empty",
            where=str(folder.path),
            remedy="Choose another --output, or continue an interrupted run with --resume",
        )


def _holds_only_a_failure(folder: RunFolder) -> bool:
    """Tells whether there is nothing but the record of a run that failed before its first logged step."""
    if not folder.path.is_dir() or {path.name for path in folder.path.iterdir()} - {LOCK_NAME} != {"run.yaml"}:
        return False
    manifest = folder.read_manifest()
    return bool(manifest["kind"] == "train" and manifest["status"] == "failed")


def reopen(config: TrainConfig) -> tuple[TrainConfig, RunFolder]:
    """Returns the settings that a run began with, and its folder.

    Whether to run code that comes with a checkpoint is for this call's command line to say, not for what lies there.

    Raises:
        DpotoolError: no run is named, or it is none that can be resumed with these settings.
    """
    if config.output is None:
        raise DpotoolError("no run is named", where="--resume", remedy="Name its folder with --output")
    folder = RunFolder(Path(config.output))
    manifest = folder.read_manifest()
    if manifest["kind"] != "train":
        raise DpotoolError(
            "cannot be resumed",
            where=config.output,
            expected="a training run",
            got=f"kind {manifest['kind']}",
        )
    began = read_settings(
        manifest["config"], TrainConfig, where=f"{folder.manifest_path}: config", remedy="Start a new run"
    )
    unset, known = TrainConfig().to_dict(), began.to_dict()
    for name, value in config.to_dict().items():
        if name not in _NOT_SETTINGS and value not in (unset.get(name), known.get(name)):
            raise DpotoolError(
                "a run is resumed with the settings it began with",
                where=f"--{name.strip('_').replace('_', '-')}",
                expected=str(known.get(name)),
                got=str(value),
                remedy="Leave it out, or start a new run",
            )
    return replace(began, resume=True, output=config.output, trust_remote_code=config.trust_remote_code), folder


_CHANGEABLE = {
    "model": ("the model it started from", "model"),
    "reference": ("its reference", "reference"),
    "tokenizer": ("the tokenizer or its chat template", "model"),
    "data": ("the training pairs", "data"),
    "eval_data": ("the evaluation pairs", "eval_data"),
    "theory": ("the theory table", "theory"),
}
"""What a run depends on and does not keep: fingerprint in run.yaml -> in words, and the setting that names it."""


def refuse_changes(folder: RunFolder, fingerprints: Mapping[str, str | None]) -> None:
    """Refuses to continue a run with another start, reference or data than it began with, which would be another run.

    Raises:
        DpotoolError: a fingerprint is not the one that run.yaml has.
    """
    manifest = folder.read_manifest()
    known = manifest.get("fingerprints") or {}
    evaluation = (manifest.get("data") or {}).get("eval") or {}
    known = {"eval_data": evaluation.get("fingerprint")} | known
    for name, (what, setting) in _CHANGEABLE.items():
        then, now = known.get(name), fingerprints.get(name)
        if then is not None and now is not None and then != now:
            raise DpotoolError(
                f"{what} ({manifest['config'].get(setting) or manifest['config'].get('model')}) changed since the run "
                "began, so it cannot be continued",
                where=str(folder.path),
                expected=f"fingerprint {then}",
                got=str(now),
                remedy="Put back what was there, or start a new run",
            )


def name_data(config: TrainingSettings) -> str:
    """Returns what the pairs are called in the name of a folder: builtin:demo -> demo, my/pairs.jsonl -> pairs."""
    data = choose_pairs(config.model, config.data).removeprefix("builtin:")
    return re.sub(r"[^\w.-]+", "-", Path(data).name.split(".")[0])


def _new_name(config: TrainConfig) -> Path:
    """Returns runs/shift-0.9-demo-20261121-101500, or that with a number behind it if it is taken."""
    parts = [config.loss, *([f"{config.lambda_:g}"] if config.lambda_ is not None else [])]
    parts += [config.lambda_schedule.replace("_", "-")] if config.lambda_schedule else []
    name = shorten_name("-".join([*parts, name_data(config)])) + datetime.now().strftime("-%Y%m%d-%H%M%S")
    taken = sum(1 for path in Path("runs").glob(f"{name}*"))
    return Path("runs") / (f"{name}-{taken + 1}" if taken else name)


def fill_folder(trainer: Trainer, folder: RunFolder) -> None:
    """Saves the trained model and tokenizer into the run folder: written beside, then moved in, the weights last.

    Raises:
        DpotoolError: the model cannot be saved; checkpoints that were saved before are still there.
    """
    staging = folder.path / ".saving"
    if trainer.args.should_save:  # and no other process, which may be there later, when this one is saving
        shutil.rmtree(staging, ignore_errors=True)
    try:
        with quiet_transformers():
            trainer.save_model(str(staging))
        if not trainer.args.should_save:
            return
        (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.yaml says the same
        share_weights(staging)
        with deferred():
            for path in sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors"):
                os.replace(path, folder.path / path.name)  # noqa: PTH105
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
        raise DpotoolError(
            f"the trained model cannot be saved ({reason})",
            where=str(folder.path),
            remedy="Free space there and run again with --resume; checkpoints saved before are kept",
        ) from None
    finally:
        if trainer.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)


def describe_devices(model: Any) -> list[str]:
    """Returns the names of the accelerators a model lies on."""
    import torch

    devices = {parameter.device for parameter in model.parameters()}
    return sorted(torch.cuda.get_device_name(device) for device in devices if device.type == "cuda")
