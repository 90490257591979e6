"""README and quickstart show what the commands print now, given the numbers of docs/data/shown_output.json.

That file holds, for each command, the part of its summary that its first screen reads, as it was measured once. So a
changed sentence, column or label fails here, and another machine's digits do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from dpotool.cli import predict, score, sweep, theory_gap
from dpotool.cli.console import Console

ROOT = Path(__file__).parents[1]
SHOWN: dict[str, Any] = json.loads((ROOT / "docs" / "data" / "shown_output.json").read_text(encoding="utf-8"))


def show_sweep(rows: list[dict[str, Any]], console: Console) -> None:
    sweep.show_table(pd.DataFrame(rows), console, is_full=False)


def show_score(models: list[dict[str, Any]], console: Console) -> None:
    results: Any = [SimpleNamespace(label=model["label"], summary=model["measured"]) for model in models]
    for table in score.summarize_models(results):
        console.table(*table)


SCREENS: dict[str, tuple[str, Callable[[Any, Console], None]]] = {
    "theory-gap": ("README.md", theory_gap.show_answer),
    "predict": ("README.md", predict.show_answer),
    "sweep": ("README.md", show_sweep),
    "score": ("docs/quickstart.md", show_score),
}


@pytest.mark.parametrize("command", SCREENS)
def test_a_page_shows_what_the_command_prints(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, show = SCREENS[command]
    show(SHOWN[command], Console())
    lines = [line.rstrip() for line in capsys.readouterr().out.strip("\n").splitlines()]
    assert len(lines) > 3
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "\n".join(lines) in "\n".join(line.rstrip() for line in text.splitlines()), "\n".join(lines)


@pytest.mark.parametrize("command", SCREENS)
def test_a_first_screen_fits_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    SCREENS[command][1](SHOWN[command], Console())
    for line in capsys.readouterr().out.splitlines():
        assert len(line.rstrip()) <= 80, line
