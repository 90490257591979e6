"""What the tests of training runs read from their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from dpotool.runs.folder import RunFolder

DIVERGES: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 10.0, "beta": 1000.0, "max_grad_norm": 0.0}
"""Settings, each within its range, under which a run turns non-finite after a few steps."""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint."""
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    assert weights
    return weights


def training_rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for row in folder.read_metrics() if "loss" in row]
