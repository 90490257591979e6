"""`dpotool sweep`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from dpotool.cli.console import Console, format_duration, format_interval
from dpotool.cli.verbs import add_verb
from dpotool.errors import DpotoolError
from dpotool.sweep.config import SweepConfig
from dpotool.wording import count

if TYPE_CHECKING:
    import pandas as pd


def register(app: typer.Typer) -> None:
    """Adds the command."""
    add_verb(app, "sweep", SweepConfig, epilog="Example: dpotool sweep --lambdas 0.5,0.9,1.0")(run)


def run(config: SweepConfig, console: Console) -> None:
    """Train several lambdas, schedules, losses or seeds from one start, then score, compare and report them."""
    from accelerate import PartialState

    from dpotool.cli.live_table import show_board
    from dpotool.sweep.run import sweep

    if config.dry_run:
        show_plan(config, console)
        return
    result = sweep(
        config,
        progress=console,
        watch=lambda board: show_board(board, console, config.jobs),
    )
    if len(result.table):
        show_table(result.table, console, is_full=config.full)
    is_whole = len(result.table) > 0 and not result.was_interrupted
    conclusion = conclude(str(result.folder), console) if is_whole and PartialState().is_main_process else {}
    console.say(
        f"sweep folder: {result.folder} ({count(result.n_trained, 'run')} trained now, {len(result.table)} in all)"
    )
    if len(result.table) and not config.full:
        console.answer(
            "--full adds log-likelihoods and margins to the table. runs.csv in that folder has every number."
        )
    console.finish(
        {
            "sweep": str(result.folder),
            "runs": result.table.to_dict("records"),
            "n_trained": result.n_trained,
            "failures": result.failures,
            "interrupted": result.was_interrupted,
            **conclusion,
        }
    )
    if result.was_interrupted:
        console.note("Interrupted; the work is saved. Run the same command again to continue.")
        raise typer.Exit(130)
    if result.failures:
        names = ", ".join(result.failures)
        raise DpotoolError(
            f"{count(len(result.failures), 'run')} failed: {names}",
            where=str(result.folder),
            remedy="See the warnings above. The same command tries only these runs again",
        )


def show_table(table: pd.DataFrame, console: Console, *, is_full: bool) -> None:
    """Prints under which runs the chosen answers end lowest and highest, and a row per run."""
    first = table.iloc[0]
    console.answer(*say_extremes(table))
    title = f"{first['model']} on {first['data']} [{first['split']}], n = {first['n']}; 95 % intervals over pairs"
    console.table(title, *tabulate_sweep(table, is_full=is_full))


def show_plan(config: SweepConfig, console: Console) -> None:
    """Prints the cells and what they cost; nothing is trained."""
    from dpotool.estimates.sweep import plan_sweep

    plan = plan_sweep(config, console)
    rows = [
        [
            cell["name"],
            "-" if cell["lambda"] is None else f"{cell['lambda']:g}",
            str(cell["seed"]),
            str(cell["steps"]),
            "finished" if cell["is_finished"] else "to train",
        ]
        for cell in plan.cells
    ]
    console.table(f"{plan.folder}: what would be trained", ["cell", "lambda", "seed", "steps", ""], rows)
    console.say(
        f"{plan.n_open} of {count(len(plan.cells), 'run')} would be trained, with "
        f"{count(plan.n_steps, 'optimiser step')} in all."
    )
    if plan.seconds:
        console.say(
            f"At the pace of the finished runs this takes about {format_duration(plan.seconds)}, one run at a time."
        )
    tested = "no test pairs" if plan.n_test is None else count(plan.n_test, "test pair")
    tested += "" if plan.n_test is None else ", which are scored after each run"
    if config.blend:
        from dpotool.sweep.plan import plan_blends

        lambdas = ", ".join(f"{value:g}" for value in plan_blends(config))
        console.answer(f"Then blends at lambda {lambdas} are scored, which need no training.")
    if config.controls:
        console.answer(
            "For comparison, DPO scaled back and DPO stopped early are then scored: about six scorings, and one more "
            "for each other run. --no-controls leaves them out."
        )
    console.answer(f"There are {count(plan.n_train, 'training pair')} and {tested}. The reference is computed once.")
    console.finish(plan.to_dict())


def conclude(folder: str, console: Console) -> dict[str, Any]:
    """Compares the finished runs, draws what can be drawn and writes the report; returns what was found and written."""
    from dpotool.cli.compare import show_first_screen
    from dpotool.plots.gallery import draw
    from dpotool.plots.registry import ALL
    from dpotool.report.page import write_report
    from dpotool.report.pairs import find_texts
    from dpotool.settings.reading import PlotConfig, ReportConfig

    report = write_report([folder], ReportConfig(), find_texts=find_texts)
    show_first_screen(report.findings, console)
    gallery = draw(ALL, [folder], PlotConfig(), report.scene)
    console.say(f"pictures: {len(gallery.paths)} in {gallery.paths[0].parent}")
    console.say(f"report: {report.path}")
    return {"compare": report.findings.to_dict(), "pictures": gallery.paths, "report": report.path}


_COLUMNS: tuple[tuple[str, str, int, float], ...] = (
    ("change of chosen", "chosen_displacement", 2, 1),
    ("displaced, %", "chosen_displaced_share", 0, 100),
    ("accuracy, %", "reward_accuracy", 1, 100),
)
_MORE_COLUMNS: tuple[tuple[str, str, int, float], ...] = (
    ("log pi(chosen)", "chosen_logps", 2, 1),
    ("log pi(rejected)", "rejected_logps", 2, 1),
    ("reward margin", "reward_margins", 3, 1),
)


def say_extremes(table: pd.DataFrame) -> list[str]:
    """Returns under which run the chosen answers end lowest and under which highest; nothing for a single run."""
    changes = table.set_index("label")["chosen_displacement"].dropna()
    if len(changes) < 2:
        return []
    worst, best = changes.idxmin(), changes.idxmax()
    return [
        f"The chosen answers moved by {changes.min():+.2f} nats under {worst}, the lowest of the runs,",
        f"and by {changes.max():+.2f} nats under {best}, the highest.",
    ]


def tabulate_sweep(table: pd.DataFrame, *, is_full: bool = False) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the trade-off table, a row per run."""
    shown = (*_COLUMNS, *_MORE_COLUMNS) if is_full else _COLUMNS
    rows = [
        [str(row["label"]), *(_cell(row, metric, digits, scale) for _, metric, digits, scale in shown)]
        for row in table.to_dict("records")
    ]
    return ["run", *(title for title, *_ in shown)], rows


def _cell(row: Mapping[Hashable, Any], metric: str, digits: int, scale: float) -> str:
    interval = {"value": row[metric], "ci_low": row[f"{metric}_low"], "ci_high": row[f"{metric}_high"]}
    return format_interval(interval, digits, scale)
