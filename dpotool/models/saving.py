"""Saves a model that dpotool computed as a checkpoint that any tool loads, whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dpotool.errors import DpotoolError
from dpotool.interruption import deferred
from dpotool.models.library_calls import quiet_transformers


def save_checkpoint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """Writes model or adapter, and tokenizer, into a folder: beside it first, then moved in, the weights last.

    Raises:
        DpotoolError: it cannot be written, as on a full disk; nothing of it stays.
    """
    staging = folder / ".saving"
    shutil.rmtree(staging, ignore_errors=True)
    whole: Any = model
    try:
        _mend_generation_settings(whole)
        with quiet_transformers():
            whole.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
        with deferred():
            for path in sorted(staging.iterdir(), key=lambda path: path.suffix == ".safetensors"):
                os.replace(path, folder / path.name)  # noqa: PTH105
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
        raise DpotoolError(
            f"the model cannot be saved ({reason})",
            where=str(folder),
            remedy="Free space there, or name another folder",
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _mend_generation_settings(model: Any) -> None:
    """Takes settings of generation away that transformers refuses to save, such as a temperature without sampling."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    settings = getattr(inner, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError:
        inner.generation_config = GenerationConfig.from_model_config(inner.config)
