"""What the Trainer is told: one process trains on one device, whatever the machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from dpotool.runs.folder import RunFolder
from dpotool.training import arguments as arguments_module
from dpotool.training.arguments import build_training_arguments, count_evaluations, describe_steps
from dpotool.training.config import TrainConfig, fill_in


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A machine that seems to have two GPUs; lists which of them were made the current one."""
    devices: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: devices.append(getattr(device, "index", device)))
    monkeypatch.setattr(arguments_module, "resolve_device", lambda name: torch.device(name.replace("auto", "cuda")))
    yield devices
    AcceleratorState._reset_state(reset_partial_state=True)


def build(device: str, tmp_path: Path) -> TrainingArguments:
    return build_training_arguments(fill_in(TrainConfig(device=device, batch_size=4)), tmp_path, 8, has_eval=False)


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_process_without_a_launcher_trains_on_one_gpu(
    device: str, index: int, chosen: list[int], tmp_path: Path
) -> None:
    arguments = build(device, tmp_path)
    assert (arguments.n_gpu, arguments.device) == (1, torch.device("cuda", index))
    assert arguments.parallel_mode is ParallelMode.NOT_PARALLEL, "nothing is wrapped in DataParallel"
    assert arguments.train_batch_size == 4
    assert chosen[-1] == index


def test_the_cpu_is_left_as_it_is(chosen: list[int], tmp_path: Path) -> None:
    arguments = build("cpu", tmp_path)
    assert (arguments.n_gpu, arguments.device) == (0, torch.device("cpu"))
    assert not chosen


def test_a_run_is_called_as_the_user_says(tmp_path: Path) -> None:
    """What wandb and others show it as."""
    config = fill_in(TrainConfig(device="cpu", run_name="mine"))
    assert build_training_arguments(config, tmp_path, 8, has_eval=False).run_name == "mine"


def test_evaluations_are_counted_as_the_trainer_makes_them(run: Callable[..., RunFolder]) -> None:
    """Before the first step, after every second of three, and after the last: at 0, 2 and 3."""
    rows = [row for row in run(eval_steps=2).read_metrics() if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert count_evaluations(3, 2) == 3
    assert [count_evaluations(n_steps, every) for n_steps, every in ((9, 2), (10, 2), (103, 25), (1, 1))] == [
        6,
        6,
        6,
        2,
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "training in 1 process: 30 pairs, 8 pairs in a step, 4 steps, learning rate 1e-06 at its peak (cosine)"),
        (
            {"gradient_accumulation": 2, "epochs": 2.0, "learning_rate": 5e-7, "scheduler": "linear"},
            "training in 1 process: 30 pairs, 16 pairs in a step (8 at a time, 2 times), 4 steps, "
            "learning rate 5e-07 at its peak (linear)",
        ),
    ],
)
def test_what_is_about_to_happen_is_said(changes: dict[str, Any], said: str) -> None:
    assert describe_steps(fill_in(TrainConfig(model="some/model", **changes)), 30) == said


def test_several_processes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments_module, "PartialState", lambda: SimpleNamespace(num_processes=2))
    text = describe_steps(fill_in(TrainConfig(model="some/model")), 30)
    assert text.startswith(
        "training in 2 processes: 30 pairs, 16 pairs in a step (8 at a time, on 2 processes), 2 steps"
    )
