"""`dpotool plot`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.plots.config import PlotConfig

if TYPE_CHECKING:
    from dpotool.runs.folder import RunFolder

_KINDS = (
    "displacement, margin, quadrants, accuracy, tradeoff (of scored runs), trajectory (of what training logged), "
    "theory, band, gap, forecast (of theory-gap's tables; a forecast also shows what came of it in the runs named "
    "beside it), prediction (of predict's), or all."
)
_KIND = Positional("kind", str, _KINDS, required=True)
_RUNS = Positional("runs", list[str] | None, "Run or sweep folders; without one, the newest under runs/.")
_THEORY = "`dpotool theory-gap`"
_COMMANDS = dict.fromkeys(("theory", "band", "gap", "forecast"), _THEORY) | {"prediction": "`dpotool predict`"}
"""Picture -> what makes its tables, where that is not scoring."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool plot displacement runs/my-run --format png,pdf"
    add_verb(app, "plot", PlotConfig, positionals=(_KIND, _RUNS), epilog=epilog)(run)


def run(config: PlotConfig, console: Console, kind: str, runs: list[str] | None) -> None:
    """Draw pictures of what was scored, estimated or predicted: distributions, trade-offs, theory, forecasts."""
    from dpotool.plots.gallery import check_kind, draw

    check_kind(kind)
    if not runs:
        runs = [find_newest(kind)]
        console.note(f"drawing the newest: {runs[0]}")
    gallery = draw(kind, runs, config)
    for name, reason in gallery.skipped.items():
        console.note(f"{name}: not drawn, {reason}")
    for path in gallery.paths:
        console.say(str(path))
    console.finish({"kind": kind, "runs": runs, "paths": gallery.paths, "skipped": gallery.skipped})


def find_newest(kind: str) -> str:
    """Returns the newest run under runs/ that has what the picture needs; a sweep's runs stand for the sweep."""
    from dpotool.errors import DpotoolError
    from dpotool.runs.folder import RunFolder, list_runs

    for run in list_runs():
        sweep = RunFolder(run.path.parent)
        holder = sweep if sweep.manifest_path.exists() else run
        if _list_tables(run, kind):
            return str(holder.path)
    needed = _COMMANDS.get(kind, "`dpotool train` and `dpotool score`")
    raise DpotoolError("no run with anything to draw", where="runs", remedy=f"Run {needed} first, or name a run folder")


def _list_tables(run: RunFolder, kind: str) -> list[Path]:
    """Returns the tables of a run that a kind of picture is made of."""
    if kind == "prediction":
        return run.list_predictions()
    return run.list_theory() if kind in _COMMANDS else run.list_scores()
