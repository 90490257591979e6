"""A training run's folder: claimed before any work, resumed with its own settings, filled in one move at the end."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import Trainer

from dpotool.errors import DpotoolError
from dpotool.models.library_calls import quiet_transformers
from dpotool.runs.atomic import ensure_writable
from dpotool.runs.folder import RunFolder
from dpotool.training.config import TrainConfig

_NOT_SETTINGS = {"resume", "output"}


def open_folder(config: TrainConfig) -> tuple[TrainConfig, RunFolder]:
    """Returns the configuration to run and the folder it may write to.

    With `resume`, the settings are those the run began with.

    Raises:
        DpotoolError: the folder is not writable, already holds something, or cannot be resumed.
    """
    if config.resume:
        return _reopen(config)
    chosen = [config.output or str(_new_name(config))]
    if PartialState().num_processes > 1:
        broadcast_object_list(chosen)  # the name holds the time of day, which the processes need not agree on
    folder = RunFolder(Path(chosen[0]))
    if int(os.environ.get("RANK", "0")) == 0:  # set by every launcher, also before accelerate has joined the processes
        _claim(folder)
    return replace(config, output=chosen[0]), folder


def _claim(folder: RunFolder) -> None:
    """Makes sure that the folder is empty and can be written; what a run that failed at once left there may go."""
    if folder.path.is_dir() and _holds_only_a_failure(folder):
        shutil.rmtree(folder.path)
    if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise DpotoolError(
            "the output folder is not empty",
            where=str(folder.path),
            remedy="Choose another --output, or continue an interrupted run with --resume",
        )
    ensure_writable(folder.path)


def _holds_only_a_failure(folder: RunFolder) -> bool:
    """Tells whether there is nothing but the record of a run that failed before its first logged step."""
    if {path.name for path in folder.path.iterdir()} != {"run.yaml"}:
        return False
    manifest = folder.read_manifest()
    return bool(manifest["kind"] == "train" and manifest["status"] == "failed")


def _reopen(config: TrainConfig) -> tuple[TrainConfig, RunFolder]:
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
    known = {field.name for field in fields(TrainConfig)}
    began = TrainConfig(**{name: value for name, value in manifest["config"].items() if name in known})
    unset = TrainConfig().to_dict()
    for name, value in config.to_dict().items():
        if name not in _NOT_SETTINGS and value not in (unset[name], getattr(began, name)):
            raise DpotoolError(
                "a run is resumed with the settings it began with",
                where=f"--{name.strip('_').replace('_', '-')}",
                expected=str(getattr(began, name)),
                got=str(value),
                remedy="Leave it out, or start a new run",
            )
    ensure_writable(folder.path)
    return replace(began, resume=True, output=config.output), folder


def _new_name(config: TrainConfig) -> Path:
    """Returns runs/shift-0.9-demo-20261121-101500, or that with a number behind it if it is taken."""
    data = re.sub(r"[^\w.-]+", "-", Path(config.data.removeprefix("builtin:")).name.split(".")[0])
    parts = [config.loss, *([f"{config.lambda_:g}"] if config.lambda_ is not None else [])]
    parts += [config.lambda_schedule.replace("_", "-")] if config.lambda_schedule else []
    name = "-".join([*parts, data, datetime.now().strftime("%Y%m%d-%H%M%S")])
    taken = sum(1 for path in Path("runs").glob(f"{name}*"))
    return Path("runs") / (f"{name}-{taken + 1}" if taken else name)


def fill_folder(trainer: Trainer, folder: RunFolder) -> None:
    """Saves the trained model and tokenizer into the run folder: written beside, then moved in, the weights last."""
    staging = folder.path / ".saving"
    if trainer.args.should_save:  # and no other process, which may be there later, when this one is saving
        shutil.rmtree(staging, ignore_errors=True)
    try:
        with quiet_transformers():
            trainer.save_model(str(staging))
        if not trainer.args.should_save:
            return
        (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.yaml says the same
        for path in sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            os.replace(path, folder.path / path.name)  # noqa: PTH105
    except OSError as error:
        raise DpotoolError(
            f"the trained model cannot be saved ({error.strerror or error})",
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
