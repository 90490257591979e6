"""What `dpotool sweep` shows while it runs: a table that is live on a terminal, plain lines everywhere else."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dpotool.cli.console import Console, format_duration, format_number
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.sweep.board import Board, CellState

_COLUMNS = ("run", "state", "log pi(chosen)", "log pi(rejected)", "margin", "left")
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
    for number, column in enumerate(_COLUMNS):
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
