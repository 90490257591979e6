"""`dpotool sweep`: the command, its table of runs, and what it shows while it runs."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from dpotool.cli.console import Console, format_duration, format_interval, format_number
from dpotool.cli.verbs import add_verb
from dpotool.errors import DpotoolError
from dpotool.sweep.config import SweepConfig
from dpotool.wording import count

if TYPE_CHECKING:
    import pandas as pd

    from dpotool.sweep.board import Board, CellState


def register(app: typer.Typer) -> None:
    """Adds the command."""
    add_verb(app, "sweep", SweepConfig, epilog="Example: dpotool sweep --lambdas 0.5,0.9,1.0")(run)


def run(config: SweepConfig, console: Console) -> None:
    """Train several lambdas, schedules, losses or seeds from one start, then score, compare and report them."""
    from accelerate import PartialState

    from dpotool.cli.sweep import show_board
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


_LIVE_COLUMNS = ("run", "state", "log pi(chosen)", "log pi(rejected)", "margin", "left")
_CAPTION = (
    "Means in nats, over the last logged batch while a run trains and over the test pairs once it is done.\n"
    "Ctrl-C stops after the current step. Run the same command again to continue."
)
_SECONDS_BETWEEN_LOOKS = 1.0


@contextmanager
def show_board(board: Board, console: Console, n_jobs: int) -> Iterator[None]:
    """Shows the board on stderr while the block runs."""
    if not console.is_main:
        yield
    elif console.is_terminal:
        from rich.live import Live

        with (
            console.keep_bars_off(),
            Live(get_renderable=lambda: draw_board(board, n_jobs), console=console.err, refresh_per_second=2),
        ):
            yield
    else:
        with _telling(board, console):
            yield


def draw_board(board: Board, n_jobs: int) -> Any:
    """Returns the board as rich's table, a row per planned run."""
    from rich import box
    from rich.table import Table

    states = board.read()
    left = board.estimate_left(states, n_jobs)
    n_done = sum(state.phase == "done" for state in states)
    title = f"{n_done} of {count(len(states), 'run')} done" + (
        f", about {format_duration(left)} of training left" if left else ""
    )
    table = Table(title=title, title_justify="left", caption=_CAPTION, caption_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(_LIVE_COLUMNS):
        table.add_column(column, justify="right" if number > 1 else "left", no_wrap=True)
    for state in states:
        table.add_row(*describe_state(state), style="dim" if state.phase == "waiting" else None)
    return table


def describe_state(state: CellState) -> list[str]:
    """Returns the cells of one row."""
    phase = state.phase
    if phase in ("training", "stopped") and state.step is not None:
        phase += f", step {state.step} of {state.n_steps or '?'}"
    elif phase == "training":
        phase = "loading"
    numbers = [
        "" if value is None else format_number(value, digits)
        for value, digits in ((state.chosen_logps, 2), (state.rejected_logps, 2), (state.reward_margin, 3))
    ]
    return [state.name, phase, *numbers, "" if state.seconds_left is None else format_duration(state.seconds_left)]


@contextmanager
def _telling(board: Board, console: Console) -> Iterator[None]:
    """Prints a line whenever a run enters another phase or another quarter of its steps."""
    shown: dict[str, tuple[str, int]] = {}
    is_over = threading.Event()

    def look() -> None:
        for line in tell_news(board.read(), shown):
            console.note(line)

    def watch() -> None:
        while not is_over.wait(_SECONDS_BETWEEN_LOOKS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        look()


def tell_news(states: Sequence[CellState], shown: dict[str, tuple[str, int]]) -> list[str]:
    """Returns a line for each run that is further than in `shown`, and updates `shown`."""
    lines = []
    for number, state in enumerate(states, start=1):
        quarter = 4 * (state.step or 0) // (state.n_steps or 1) if state.phase == "training" else 0
        if state.phase == "waiting" or shown.get(state.name) == (state.phase, quarter):
            continue
        shown[state.name] = (state.phase, quarter)
        name, phase, chosen, rejected, margin, left = describe_state(state)
        values = {"log pi(chosen)": chosen, "log pi(rejected)": rejected, "margin": margin, "left": left}
        known = ", ".join(f"{what} {value}" for what, value in values.items() if value)
        lines.append(f"{name} ({number} of {len(states)}): {phase}" + (f"; {known}" if known else ""))
    return lines
