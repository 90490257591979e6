"""What the console may never do: lose a number, or put anything but the result on stdout."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dpotool.cli.console import Console, format_interval
from dpotool.cli.score import describe_noise


def test_a_narrow_terminal_cuts_no_number_short(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console._out.width = 40
    numbers = [f"-{column}05.57 [-116.67, -85.18]" for column in range(6)]
    console.table("a [title] in brackets", ["run", *"abcdef"], [["DPO-Shift λ=0.75→1 ↑", *numbers]])
    out = capsys.readouterr().out
    assert all(number in out for number in numbers)
    assert "…" not in out
    assert "a [title] in brackets" in out


def test_notes_go_to_stderr_and_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.note("found [test]")
    console.note("found [test]")
    console.warn("odd")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "found [test]\nwarning: odd\n"


def test_the_accuracy_beyond_rounding_is_said():
    """Of three margins one is smaller than what rounding moves; so one in three is surely right."""
    noise = {"n": 3, "logps": {"largest": 0.2}, "ref_logps": None, "reward_margins": {"largest": 0.05}}
    beyond = {"value": 1 / 3, "ci_low": 0.1, "ci_high": 0.6}
    summary = {"n": 3, "ties": 1, "noise_floor": noise, "reward_accuracy_beyond_noise": beyond}
    [line] = describe_noise(SimpleNamespace(label="a", summary=summary))
    assert "moved by up to 0.05; 1 of 3 margins are no larger" in line
    assert line.endswith("With ties as wrong, reward accuracy is 33.3 [10.0, 60.0] %.")


def test_intervals() -> None:
    assert format_interval({"mean": 0.12345, "ci_low": 0.1, "ci_high": 0.2}, 2, 100) == "12.35 [10.00, 20.00]"
    assert format_interval({"value": 1.0, "ci_low": None, "ci_high": None}, 1) == "1.0"
    assert format_interval(None) == "-"
    assert format_interval({"mean": -0.0004, "ci_low": -0.006, "ci_high": -0.0}, 2) == "0.00 [-0.01, 0.00]"


def test_without_a_terminal_long_work_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 steps of 2 s, of which 20 lay there already: a line every half minute, with the time that is left."""
    now = [1000.0]
    monkeypatch.setattr("dpotool.cli.console.time.monotonic", lambda: now[0])
    with Console().track("training\x1b[2J", 100) as advance:
        advance(20)
        for _ in range(80):
            now[0] += 2.0
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        r"training\x1b[2J: 35 of 100, about 2 min 10 s left",
        r"training\x1b[2J: 50 of 100, about 1 min 40 s left",
    ]
    assert len(lines) == 5


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().track("scoring", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""
