"""Interrupted runs: a signal saves the work, and what is continued ends where an uninterrupted run ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import read_weights, training_rows

from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder
from dpotool.training import callbacks
from dpotool.training import run as training_run
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

Run = Callable[..., RunFolder]


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends this process SIGINT while a given step runs, as Ctrl-C would."""

    def arrange(step: int) -> None:
        real = callbacks.GradientGuard.on_pre_optimizer_step

        def on_pre_optimizer_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            real(self, args, state, control, **kwargs)

        monkeypatch.setattr(callbacks.GradientGuard, "on_pre_optimizer_step", on_pre_optimizer_step)

    return arrange


@pytest.mark.parametrize("loss", [{}, {"loss": "shift", "lambda_schedule": "linear_decrease"}])
def test_resumed_equals_uninterrupted(
    run: Run,
    settings: dict[str, Any],
    tmp_path: Path,
    interrupt_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    loss: dict[str, Any],
) -> None:
    whole = run(**loss, output=str(tmp_path / "whole"))
    interrupt_after(2)
    first = train(TrainConfig(**{**settings, **loss}))
    monkeypatch.undo()
    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / "another-cache"))
    assert first.was_interrupted
    assert first.folder.read_manifest()["status"] == "interrupted"
    assert not (first.folder.path / "model.safetensors").exists()
    second = train(TrainConfig(output=settings["output"], resume=True))
    assert second.folder.read_manifest()["status"] == "finished"
    expected = read_weights(whole.path)
    assert all(torch.equal(weight, expected[name]) for name, weight in read_weights(second.folder.path).items())
    kept = ("step", "loss", "logps/chosen", "rewards/margins", "lambda")
    rows, expected_rows = training_rows(second.folder), training_rows(whole)
    assert [[row[name] for name in kept] for row in rows] == [[row[name] for name in kept] for row in expected_rows]


def test_resuming_with_other_settings_is_an_error(
    settings: dict[str, Any], interrupt_after: Callable[[int], None]
) -> None:
    interrupt_after(1)
    train(TrainConfig(**settings))
    with pytest.raises(
        DpotoolError, match=r"--beta: a run is resumed with the settings it began with; expected 0.1, got 0.5"
    ):
        train(TrainConfig(output=settings["output"], resume=True, beta=0.5))


def test_resuming_a_finished_run_changes_nothing(run: Run, settings: dict[str, Any]) -> None:
    folder = run()
    before = read_weights(folder.path)
    train(TrainConfig(output=settings["output"], resume=True))
    assert all(torch.equal(weight, before[name]) for name, weight in read_weights(folder.path).items())


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DpotoolError, match="--output"):
        train(TrainConfig(resume=True))
    with pytest.raises(DpotoolError, match=r"not a run folder, it has no run.yaml"):
        train(TrainConfig(resume=True, output=str(tmp_path)))


def test_checkpoints_asked_for_by_step_stay(run: Run) -> None:
    folder = run(save_at="1,2")
    assert {path.name for path in folder.path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_checkpoints_are_kept_every_n_steps(run: Run) -> None:
    folder = run(save_steps=2, epochs=2.0)
    assert {path.name for path in folder.path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


def test_a_repetition_is_not_a_resumption(run: Run, tmp_path: Path) -> None:
    config = TrainConfig(**run().read_manifest()["config"])
    assert config.output is None
    assert not replace(config, output=str(tmp_path / "x")).resume


def test_a_kill_while_tidying_leaves_a_finished_run(
    run: Run, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints that guard against an interruption go last: without them an unfinished run would be lost."""

    def kill(*_args: Any, **_kwargs: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(training_run, "_remove_rolling_checkpoints", kill)
    with pytest.raises(SystemExit):
        run()
    folder = RunFolder(Path(settings["output"]))
    assert folder.read_manifest()["status"] == "finished" and read_weights(folder.path)
