"""What the console may never do: lose a number, or put anything but the result on stdout.

What reaches a terminal: nothing that steers it, and nothing is lost where it cannot be written.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpotool.cli.console import Console, GuardedOutput, format_interval, format_json, printable
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain λ, é, 漢, tab\tand\nline", "plain λ, é, 漢, tab\tand\nline"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\x07\x08", r"a\rb\x07\x08"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("abc\u202ecba", r"abc\u202ecba"),
        ("name-\udcff", r"name-\udcff"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_everything_a_console_prints_is_printable(capsys: Any) -> None:
    console = Console()
    evil = "\x1b]0;title\x07"
    console.note(evil)
    console.warn(evil)
    console.say(evil)
    console.table(evil, [evil, evil], [[evil, evil]])
    captured = capsys.readouterr()
    assert "\x1b]" not in captured.out + captured.err and "\x07" not in captured.out + captured.err


def test_json_means_the_same_and_steers_nothing() -> None:
    value = {"a\x1b": "λ\x9b\u202e\udcff\x7f"}
    for is_ascii in (False, True):
        text = format_json(value, is_ascii=is_ascii)
        assert json.loads(text) == value
        assert not any(ord(char) < 32 or char in "\x7f\x9b\u202e\udcff" for char in text)


class Full(io.StringIO):
    """A stream that cannot take anything."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "is_wrong"), [(32, False), (28, True), (27, True)])  # EPIPE, ENOSPC, EFBIG
def test_work_goes_on_when_nothing_more_can_be_written(number: int, is_wrong: bool) -> None:
    output = GuardedOutput(Full(number))
    assert output.write("a") == 1 and output.write("b") == 1
    output.flush()
    assert (output.error is not None) == is_wrong


def call(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dpotool", *words], stderr=subprocess.PIPE, text=True, timeout=60, check=False, **kwargs
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
@pytest.mark.parametrize("words", [["cache", "ls"], ["cache", "ls", "--json"], ["--version"], ["--help"]])
def test_a_full_stdout_is_one_line(words: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = call(*words, stdout=full)
    assert result.returncode == 1
    assert result.stderr.startswith("error: stdout: cannot be written (No space left on device)")
    assert result.stderr.count("\n") == 1


def test_a_reader_that_has_gone_is_nothing_wrong() -> None:
    read, write = os.pipe()
    os.close(read)
    result = call("--help", stdout=write)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


def test_an_ascii_terminal_costs_no_result() -> None:
    code = "from dpotool.cli.console import guarding_output\nwith guarding_output(): print('DPO-Shift λ=0.5')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "DPO-Shift \\u03bb=0.5\n"
