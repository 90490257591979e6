"""`dpotool predict`."""

from __future__ import annotations

from typing import Any

from dpotool.cli.console import Console, format_interval
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.scoring import PredictConfig
from dpotool.wording import count

_CHECKPOINTS = Positional(
    "checkpoints", list[str] | None, "FROM and TO. With TO alone, the run is compared with the model it started from."
)


def register(app: Any) -> None:
    """Adds the command."""
    epilog = "Example: dpotool predict builtin:demo runs/my-run --at middle"
    add_verb(app, "predict", PredictConfig, positionals=(_CHECKPOINTS,), epilog=epilog)(run)


def run(config: PredictConfig, console: Console, checkpoints: list[str] | None) -> None:
    """Predict each pair's change between two checkpoints from the gradients, and say how much of it they explain."""
    from dpotool.gradients.prediction import run_prediction

    start, end = choose_checkpoints(checkpoints or [], console)
    result = run_prediction(end, start, config, progress=console)
    summary = result.summary
    show_answer(summary, console)
    if config.full:
        console.table("How well the prediction fits the single pairs", *_tabulate_fit(summary))
        console.say(
            "ratio and slope: 1 means that the sizes are right. correlation: 1 means that the order of the "
            "pairs is right."
        )
    else:
        console.answer("predicted/measured: 1 means a perfect prediction. --full adds correlations, slopes and signs.")
    console.say(f"prediction table: {result.path}")
    console.finish({"path": str(result.path), **summary})


def choose_checkpoints(named: list[str], console: Console) -> tuple[str | None, str]:
    """Returns (first, second checkpoint), by default start and end of the newest run.

    Raises DpotoolError for more than two.
    """
    from dpotool.errors import DpotoolError
    from dpotool.runs.folder import newest_run

    if len(named) > 2:
        raise DpotoolError(
            "takes two checkpoints", where="predict", expected="FROM and TO", got=count(len(named), "name")
        )
    if named:
        return (named[0] if len(named) == 2 else None), named[-1]
    run = newest_run()
    console.note(f"predicting the newest run: {run.path}")
    return None, str(run.path)


def show_answer(summary: dict[str, Any], console: Console) -> None:
    """Prints the first screen: what is explained, and a table."""
    console.answer(*say_prediction(summary))
    console.table(f"{summary['data']} [{summary['split']}], n = {summary['n']}, 95 % intervals", *_tabulate(summary))


def say_prediction(summary: dict[str, Any]) -> list[str]:
    """Returns what was compared, how much of the chosen answers' change is explained, and how well pairs are ranked."""
    chosen = summary["chosen"]
    change, share = chosen["measured"]["mean"], chosen["explained"]
    what, moved = ("fall", "fell") if change < 0 else ("rise", "rose")
    parts = []
    if share is not None:
        parts.append(f"explain {100 * share['value']:.0f} % of the {what}")
    if chosen["rank_correlation"] is not None:
        ranks = chosen["rank_correlation"]["value"]
        parts.append(f"rank the pairs {_grade(ranks)} ({ranks:.2f})")
    way = f"From {summary['from']} to {summary['to']}"
    sentences = [f"{way} the chosen answers {moved} by {abs(change):.2f} nats."]
    if parts:
        at = {"from": "at the start", "to": "at the end", "middle": "half-way"}[summary["at"]]
        sentences.append(f"Gradients taken {at} {' and '.join(parts)}.")
    if share is None:
        sentences.append(
            f"On these pairs the mean {what} cannot be distinguished from 0, so no share of it can be stated."
        )
    return sentences


def _grade(correlation: float) -> str:
    for least, word in ((0.9, "almost perfectly"), (0.7, "well"), (0.4, "roughly")):
        if correlation >= least:
            return word
    return "poorly"


_SIDES = ("chosen", "rejected", "margin")


def _tabulate(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the first screen's table: log pi(chosen), log pi(rejected) and the margin between them."""
    keys = ("measured", "predicted", "explained")
    rows = [[name, *(format_interval(summary[name][key], 2) for key in keys)] for name in _SIDES]
    return ["change of", "measured, nats", "predicted, nats", "predicted/measured"], rows


def _tabulate_fit(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns how well single pairs are predicted."""
    keys = ("correlation", "rank_correlation", "slope")
    rows = [
        [
            name,
            *(format_interval(summary[name][key], 2) for key in keys),
            format_interval(summary[name]["same_sign"], 1, 100),
        ]
        for name in _SIDES
    ]
    return ["change of", "correlation", "of ranks", "slope", "right direction, %"], rows
