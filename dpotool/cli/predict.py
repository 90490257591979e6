"""`dpotool predict`."""

from __future__ import annotations

from typing import Any

from dpotool.cli.console import Console, format_interval
from dpotool.cli.verbs import Positional, add_verb
from dpotool.gradients.config import PredictConfig

_CHECKPOINTS = Positional(
    "checkpoints", list[str] | None, "FROM and TO, or only TO: the run is compared with the model it began with."
)


def register(app: Any) -> None:
    """Adds the command."""
    epilog = "Example: dpotool predict builtin:demo runs/my-run --at middle"
    add_verb(app, "predict", PredictConfig, positionals=(_CHECKPOINTS,), epilog=epilog)(run)


def run(config: PredictConfig, console: Console, checkpoints: list[str] | None) -> None:
    """Say how much of the displacement between two checkpoints a first-order prediction explains, pair by pair."""
    from dpotool.gradients.prediction import run_prediction

    start, end = choose_checkpoints(checkpoints or [], console)
    result = run_prediction(end, start, config, progress=console)
    summary = result.summary
    title = (
        f"{summary['from']} to {summary['to']} on {summary['data']} [{summary['split']}], n = {summary['n']}, "
        f"weights moved by {summary['distance']:.2g} of their norm, gradients at: {summary['at']}"
    )
    console.table(title, *tabulate_prediction(summary))
    console.say("1 would be: all of it explained, pairs in the right order, changes of the right size")
    console.say(f"prediction table: {result.path}")
    console.finish({"path": str(result.path), **summary})


def choose_checkpoints(named: list[str], console: Console) -> tuple[str | None, str]:
    """Returns (first, second checkpoint); without any name, the newest trained run and where it began."""
    from dpotool.errors import DpotoolError
    from dpotool.runs.folder import newest_run

    if len(named) > 2:
        raise DpotoolError("takes two checkpoints", where="predict", expected="FROM and TO", got=f"{len(named)} names")
    if named:
        return (named[0] if len(named) == 2 else None), named[-1]
    run = newest_run(kind="train")
    console.note(f"predicting the newest run: {run.path}")
    return None, str(run.path)


def tabulate_prediction(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the table: log pi(chosen), log pi(rejected) and the margin between them."""
    rows = []
    for name in ("chosen", "rejected", "margin"):
        found = summary[name]
        rows.append(
            [
                name,
                *(format_interval(found[key], 2) for key in ("measured", "predicted", "explained")),
                *(format_interval(found[key], 2) for key in ("correlation", "rank_correlation", "slope")),
                format_interval(found["same_sign"], 1, 100),
            ]
        )
    columns = ["change of", "measured, nats", "predicted", "predicted/measured"]
    return [*columns, "correlation", "of ranks", "slope", "right direction, % of pairs"], rows
