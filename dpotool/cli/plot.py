"""`dpotool plot`."""

from __future__ import annotations

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.plots.config import PlotConfig

_KIND = Positional("kind", str, "displacement, margin, accuracy, tradeoff, trajectory, theory, or all.", required=True)
_RUNS = Positional("runs", list[str] | None, "Run or sweep folders; without one, the newest under runs/.")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool plot displacement runs/my-run --format png,pdf"
    add_verb(app, "plot", PlotConfig, positionals=(_KIND, _RUNS), epilog=epilog)(run)


def run(config: PlotConfig, console: Console, kind: str, runs: list[str] | None) -> None:
    """Draw pictures from scored runs: distributions, accuracy against lambda, the trade-off, theory, trajectories."""
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
    from dpotool.results.runs import RunFolder, list_runs

    for run in list_runs():
        sweep = RunFolder(run.path.parent)
        holder = sweep if sweep.manifest_path.exists() else run
        if run.list_theory() if kind == "theory" else run.list_scores():
            return str(holder.path)
    needed = "`dpotool theory-gap`" if kind == "theory" else "`dpotool train` and `dpotool score`"
    raise DpotoolError("no run with anything to draw", where="runs", remedy=f"Run {needed} first, or name a run folder")
