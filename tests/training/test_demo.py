"""The built-in model is there whole or not at all."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from dpotool.models.builtin import is_builtin, locate_model, standing_in
from dpotool.models.loading import load_tokenizer
from dpotool.training import demo
from dpotool.training.callbacks import StepBar


@pytest.fixture
def interrupted_after_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One Ctrl-C, as a terminal sends it, while the built-in model takes its first step, and no second one."""

    def interrupt(_bar: StepBar, _arguments: object, state: TrainerState, *_args: object, **_kwargs: object) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StepBar, "on_step_end", interrupt)


def test_an_interrupted_first_use_is_an_interruption_and_keeps_nothing(
    interrupted_after_one_step: None, own_cache: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        demo.ensure_demo_model()
    assert not list(own_cache.glob("demo-*"))
    assert not list(own_cache.glob("tmp*"))


def test_the_command_line_exits_with_130(
    interrupted_after_one_step: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from dpotool.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dpotool", "score", "builtin:demo", "--limit", "2"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_model_is_found_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_MODEL", replace(demo.DEMO_MODEL, make=lambda progress: Path("made")))
    names = ["builtin:demo", "org/model", "runs/mine"]
    assert list(map(locate_model, names)) == ["made", "org/model", "runs/mine"]
    assert list(map(is_builtin, names)) == [True, False, False]


def test_a_stand_in_is_untrained_and_makes_nothing(own_cache: Path) -> None:
    with standing_in():
        folder = Path(locate_model("builtin:demo"))
        assert folder == Path(locate_model("builtin:demo")) and (folder / "model.safetensors").is_file()
        assert load_tokenizer("builtin:demo").vocab_size == 1024
    assert not folder.exists() and not list(own_cache.glob("demo-*"))
