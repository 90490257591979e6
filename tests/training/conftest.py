"""A tiny model, tiny pairs, and a way to train on them in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model, write_pairs

from dpotool.runs.folder import RunFolder
from dpotool.training.config import TrainConfig
from dpotool.training.run import train


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 32)


@pytest.fixture(scope="session")
def base_settings(tiny_model: Path, pairs_file: Path) -> dict[str, Any]:
    """24 training and 8 test pairs, 3 steps of 8."""
    return {
        "model": str(tiny_model),
        "data": str(pairs_file),
        "test_fraction": 0.25,
        "learning_rate": 1e-2,
        "batch_size": 8,
        "logging_steps": 1,
        "warmup_ratio": 0.0,
    }


@pytest.fixture
def settings(base_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same, with a folder to write to."""
    return base_settings | {"output": str(tmp_path / "run")}


@pytest.fixture
def run(settings: dict[str, Any]) -> Callable[..., RunFolder]:
    """Trains with the settings, some of them changed, and returns the run folder."""

    def run_(**changes: Any) -> RunFolder:
        torch.manual_seed(0)
        return train(TrainConfig(**{**settings, **changes})).folder

    return run_
