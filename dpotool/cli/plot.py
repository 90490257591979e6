"""`dpotool plot`."""

from __future__ import annotations

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.plots.registry import ALL, NEEDS, choose_plots, find_plots
from dpotool.settings.reading import PlotConfig


def list_choices() -> dict[str, str]:
    """Returns every kind of picture, and `all`, with what it shows."""
    return {kind.name: kind.shows for kind in find_plots().values()} | {
        ALL: "every picture that these runs have the tables for"
    }


_KIND = Positional("kind", str, "The picture to draw.", required=True, choices=list_choices)
_RUNS = Positional("runs", list[str] | None, "Run or sweep folders. The default is the newest under runs/.")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool plot quadrants runs/my-run --format png,pdf"
    add_verb(app, "plot", PlotConfig, positionals=(_KIND, _RUNS), epilog=epilog)(run)


def run(config: PlotConfig, console: Console, kind: str, runs: list[str] | None) -> None:
    """Draw pictures of what was scored, forecast or predicted."""
    kinds = choose_plots(kind, config.y)
    if not runs:
        runs = [find_newest(kinds[0].needs)]
        console.note(f"drawing the newest: {runs[0]}")
    from dpotool.plots.gallery import draw

    gallery = draw(kind, runs, config)
    for reason in dict.fromkeys(gallery.skipped.values()):
        names = [name for name, why in gallery.skipped.items() if why == reason]
        console.note(f"Not drawn: {', '.join(names)}. {reason}")
    for path in gallery.paths:
        console.say(str(path))
    console.finish({"kind": kind, "runs": runs, "paths": gallery.paths, "skipped": gallery.skipped})


def find_newest(needs: str) -> str:
    """Returns the newest run under runs/ that has what a picture needs (of a sweep, its runs).

    Raises DpotoolError if none has.
    """
    from dpotool.errors import DpotoolError
    from dpotool.runs.folder import RunFolder, list_runs

    need = NEEDS[needs]
    for run in list_runs():
        sweep = RunFolder(run.path.parent)
        holder = sweep if sweep.manifest_path.exists() else run
        if need.find(run):
            return str(holder.path)
    remedy = f"Run {need.command} first, or name a run folder"
    raise DpotoolError("no run with anything to draw", where="runs", remedy=remedy)
