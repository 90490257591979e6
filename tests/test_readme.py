"""The commands that README and docs show exist: every `dpotool ...` line parses, every make target and file is there.

A line that trains on the built-in model would take minutes here; the cheap ones run, on a tiny model in its place.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shell_scripts import call_dpotool
from tiny_models import save_tiny_model, write_pairs
from typer.main import get_command

from dpotool.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
_BLOCK = re.compile(r"^```(?:bash|sh|console|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read_commands(page: Path) -> Iterator[str]:
    """Yields the command lines of the fenced shell blocks: prompts and comments taken off, continued lines joined."""
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        lines = block.replace("\\\n", " ").splitlines()
        is_session = any(line.startswith("$ ") for line in lines)
        for line in lines:
            if line.startswith("$ ") or not is_session:
                yield line.removeprefix("$ ").strip()


def find_calls(program: str) -> list[tuple[str, list[str]]]:
    """Returns (page, words) of every call of a program that the pages show."""
    return [
        (page.name, shlex.split(line, comments=True)[1:])
        for page in PAGES
        for line in read_commands(page)
        if line.startswith(f"{program} ")
    ]


def test_the_table_of_commands_names_the_arguments_they_take() -> None:
    shown = re.findall(r"^\| `dpotool ([^`\\]+)`", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) >= 9
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for verb, *words in map(str.split, shown):
        commands[verb].make_context(verb, words)


def test_every_dpotool_line_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that do not exist, values of another type, and missing arguments are usage errors of click."""
    monkeypatch.setattr("dpotool.cli.verbs.read_config", lambda *args, **kwargs: {})
    calls = find_calls("dpotool")
    assert len(calls) > 20
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for page, words in calls:
        assert words[0] in commands or words == ["--help"], f"{page}: dpotool {shlex.join(words)}"
        if "--help" not in words:
            try:
                commands[words[0]].make_context(words[0], words[1:])
            except Exception as error:
                pytest.fail(f"{page}: dpotool {shlex.join(words)}: {error!r}")


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    calls = [(page, words[0]) for page, words in find_calls("make")]
    assert {"demo", "test"} <= {target for page, target in calls if page == "README.md"}
    for page, target in calls:
        assert target in targets, f"{page}: make {target}"


def test_every_example_that_is_started_exists() -> None:
    starts = [line.split()[0] for page in PAGES for line in read_commands(page) if line.startswith("examples/")]
    starts += [words[0] for _, words in find_calls("python") if words[0].startswith("examples/")]
    assert len(starts) > 3
    for path in starts:
        assert (ROOT / path).is_file(), path


def test_the_tree_names_what_is_there() -> None:
    """Every room of the package is in README's file tree, and nothing else is."""
    [tree] = re.findall(r"^```tree\n(dpotool/\n.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^[├└]── (\w+)/", tree, re.MULTILINE))
    rooms = {path.parent.name for path in (ROOT / "dpotool").glob("*/__init__.py")}
    assert named == rooms


def test_the_first_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of README and quickstart, on a tiny model for two steps; they leave what run-folder.md lists."""
    save_tiny_model(tmp_path / "tiny")
    write_pairs(tmp_path / "pairs.jsonl", 24)
    monkeypatch.chdir(tmp_path)
    tiny = ["--model", "tiny", "--data", "pairs.jsonl", "--test-fraction", "0.25"]
    words = {
        "train": ["train", "--loss", "shift", "--lambda", "0.75", *tiny, "--max-steps", "2", "--save-at", "1"],
        "score": ["score", "runs/shift", "--tokens"],
        "theory-gap": ["theory-gap", "--model", "runs/shift"],
        "diagnose": ["diagnose", "runs/shift", "--no-mass"],
        "plot": ["plot", "all", "runs/shift"],
    }
    words["train"] += ["--output", "runs/shift"]
    for name, call in words.items():
        outcome = call_dpotool(call)
        assert outcome.code == 0, f"{name}: {outcome.err}"
    assert (tmp_path / "runs" / "shift" / "plots" / "displacement.png").is_file()
    page = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    [tree] = re.findall(r"^```tree\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    named = re.findall(r"^[│├└─ ]+── ([\w.-]+)", tree, re.MULTILINE)
    assert len(named) > 15
    for name in named:
        made = name.replace("demo-test", "pairs-test").replace("checkpoint-20", "checkpoint-1")
        assert list((tmp_path / "runs" / "shift").rglob(made)) or name == "controls", f"no command wrote {name}"
