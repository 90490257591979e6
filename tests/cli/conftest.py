"""Runs the command line inside the test process, as a shell would see it: exit code, stdout, stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_models import save_tiny_model, write_pairs

from dpotool.cli.app import main


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str


Dpotool = Callable[..., Outcome]


@pytest.fixture
def dpotool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dpotool:
    """Calls `dpotool WORDS...` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dpotool", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def no_conclusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep ends with its table: where the comparison, the pictures and the report are not looked at."""
    monkeypatch.setattr("dpotool.cli.sweep.conclude", lambda *_: {})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 24)
