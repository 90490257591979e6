"""The shape of the house: imports go one way, the light rooms stay light, and files stay readable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dpotool"

FLOORS = [
    {"errors", "interruption", "wording"},
    {"hub", "plugins", "progress", "settings"},
    {"data", "runs", "stats"},
    {"models", "cache", "theory"},
    {"likelihood", "compare"},
    {"losses", "plots"},
    {"gradients", "report"},
    {"training", "measures", "foreign", "judging"},
    {"sweep", "curation"},
    {"estimates"},
    {"cli", "api"},
]
"""A room may import from its own floor's own room and from every floor below it; rooms of one floor are strangers."""
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

TORCH_FREE = (
    "errors", "interruption", "hub", "progress", "settings", "runs", "stats", "theory", "compare", "plots", "report",
    "cache", "plugins", "wording",
)  # fmt: skip
HEAVY = ("torch", "transformers", "accelerate", "datasets")


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 50
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__", "__main__"}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for name in imports_of(path):
        if name.startswith("dpotool."):
            other = name.split(".")[1]
            assert other == room or FLOOR_OF[other] < FLOOR_OF[room], f"{room} imports {name}"


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p) in TORCH_FREE], ids=lambda p: p.name)
def test_torch_free_rooms(path: Path) -> None:
    heavy = [name for name in imports_of(path) if name.split(".")[0] in HEAVY]
    assert not heavy


def test_help_and_plot_start_without_torch() -> None:
    code = (
        "import sys; from dpotool.cli.app import app; from typer.testing import CliRunner\n"
        "for words in (['--help'], ['train', '--help'], ['plot', '--help'], ['score', '--help']):\n"
        "    result = CliRunner().invoke(app, words); assert result.exit_code == 0, result.output\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_drawer_for_leftovers() -> None:
    names = {path.stem for path in modules()}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_hold_one_idea(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    if text.strip():
        assert ast.get_docstring(ast.parse(text)), "a file opens with what it is"


READERS_OF_WHOLE_FILES = {
    "runs/checked.py", "data/demo.py", "data/templates.py", "likelihood/budget.py", "losses/page.py",
    "runs/manifest.py",
}  # fmt: skip
"""The first reads for all others; those read nothing of a user's: of the system, of the package, of these docs."""


def test_what_is_hard_to_get_right_is_done_in_one_place() -> None:
    """Where a whole file is read a pipe is refused, which would be waited for without end, and so are deep nesting and
    long numbers; where `~` and links are followed, a home that nobody knows is one line and a circle no traceback."""
    followers = {path for path in modules() if re.search(r"\.(expanduser|resolve)\(", path.read_text(encoding="utf-8"))}
    assert {path.name for path in followers} == {"errors.py", "places.py"}  # the latter of the working folder
    readers = {path for path in modules() if re.search(r"\.read_(text|bytes)\(", path.read_text(encoding="utf-8"))}
    assert {path.relative_to(PACKAGE).as_posix() for path in readers} == READERS_OF_WHOLE_FILES
