"""What reaches a terminal: nothing that steers it, and nothing is lost where it cannot be written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpotool.cli.console import Console
from dpotool.cli.output import GuardedOutput, format_json, printable


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
    code = "from dpotool.cli.output import guarding_output\nwith guarding_output(): print('DPO-Shift λ=0.5')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "DPO-Shift \\u03bb=0.5\n"
