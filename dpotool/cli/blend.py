"""`dpotool blend`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dpotool.cli.console import Console, format_interval
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.scoring import BlendConfig
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.measures.blend import BlendResult

_FIRST = Positional(
    "first", str, "Run folder, checkpoint, adapter, hub id or built-in model at one end.", required=True
)
_SECOND = Positional("second", str, "The model at the other end, trained from the same start.", required=True)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool blend runs/dpo runs/shift-0.5 --at 0.75,0.9"
    add_verb(app, "blend", BlendConfig, positionals=(_FIRST, _SECOND), epilog=epilog)(run)


def run(config: BlendConfig, console: Console, first: str, second: str) -> None:
    """Score models whose weights are averages of two trained models, without training, and save one."""
    from dpotool.measures.blend import score_blends
    from dpotool.runs.folder import RunFolder

    result = score_blends(first, second, config, progress=console)
    for sentence in describe_blends(result).splitlines():
        console.answer(sentence)
    summary = result.scores[0].summary
    title = f"{summary['data']} [{summary['split']}], n = {summary['n']}; changes in nats, 95 % intervals over pairs"
    console.table(title, *tabulate_blends(result))
    places = [str(RunFolder.of_table(score.path).path) for score in result.scores]
    if result.checkpoint is not None:
        console.say(f"checkpoint: {result.checkpoint}")
    console.say(
        f"scores: {result.scores[0].path}{' and one such table for each other point' if len(places) > 1 else ''}"
    )
    runs = [model for model, known in zip(result.ends.models, find_end_summaries(result), strict=True) if known]
    console.say(f"Next: {shlex.join(['dpotool', 'compare', *runs, *places])}")
    console.finish(
        {
            "ends": list(result.ends.models),
            "lambdas": result.ends.lambdas,
            "checkpoint": None if result.checkpoint is None else str(result.checkpoint),
            "results": [
                {"weight": point.weight, "lambda": point.lambda_, "path": str(score.path), **score.summary}
                for point, score in zip(result.points, result.scores, strict=True)
            ],
        }
    )


def describe_blends(result: BlendResult) -> str:
    """Returns what was done, and from where to where the blends reach."""
    first, second = result.ends.models
    n, n_pairs = len(result.points), result.scores[0].summary["n"]
    text = f"{count(n, 'blend')} of {first} and {second}, scored on {count(n_pairs, 'pair')}; nothing was trained."
    changes = [score.summary["chosen_displacement"] for score in result.scores]
    accuracies = [score.summary["reward_accuracy"] for score in result.scores]
    if not n_pairs or any(value is None for value in (*changes, *accuracies)):
        return text
    chosen = _range([_value(each) for each in changes], 2)
    ranked = _range([100 * _value(each) for each in accuracies], 1)
    return f"{text}\nChosen answers changed by {chosen} nats from the reference; reward accuracy is {ranked} %."


def _value(interval: Mapping[str, Any]) -> float:
    return float(interval.get("mean", interval.get("value")))


def _range(values: list[float], digits: int) -> str:
    low, high = (f"{value:z.{digits}f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def find_end_summaries(result: BlendResult) -> list[Mapping[str, Any] | None]:
    """Returns the summary of each end's scores on the same pairs; None for an end without any."""
    from dpotool.compare.runs_table import find_scores
    from dpotool.compare.scored_run import ScoredRun
    from dpotool.compare.summaries import get_summary
    from dpotool.errors import DpotoolError
    from dpotool.runs.folder import RunFolder

    about = result.scores[0].summary
    found: list[Mapping[str, Any] | None] = []
    for model in result.ends.models:
        try:
            path, _ = find_scores(RunFolder(Path(model)), data=about["data"], split=about["split"])
            summary = get_summary(ScoredRun.open(path))
        except DpotoolError:
            summary = None
        is_same = summary is not None and all(summary.get(name) == about[name] for name in ("n", "beta", "reference"))
        found.append(summary if is_same else None)
    return found


_SHOWN = (("change chosen", "chosen_displacement", 2, 1), ("margin", "reward_margins", 2, 1),
          ("accuracy, %", "reward_accuracy", 1, 100))  # fmt: skip


def tabulate_blends(result: BlendResult) -> tuple[list[str], list[list[str]]]:
    """Returns a row per point, with the ends where they were scored on the same pairs, along the line."""
    lambdas = result.ends.lambdas
    rows: list[tuple[float, str, Mapping[str, Any]]] = []
    for number, summary in enumerate(find_end_summaries(result)):
        if summary is not None:
            name = f"{number} {Path(result.ends.models[number]).name}"
            rows.append((3 * number - 1, f"{lambdas[number]:g} trained" if lambdas else name, summary))
    for point, score in zip(result.points, result.scores, strict=True):
        value = point.weight if point.lambda_ is None else point.lambda_
        rows.append((point.weight, f"{value:g} blended", score.summary))
    columns = ["lambda" if lambdas else "weight", *(title for title, *_ in _SHOWN)]
    shown = [
        [label, *(format_interval(summary.get(name), digits, scale) for _, name, digits, scale in _SHOWN)]
        for _, label, summary in sorted(rows, key=lambda row: row[0])
    ]
    return columns, shown
