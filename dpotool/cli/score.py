"""`dpotool score`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from dpotool.cli.console import Console, format_interval, show_dry_run
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.scoring import ScoreConfig
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.measures.run import ScoreResult

_MODELS = Positional(
    "models", list[str] | None, "Run folders, checkpoints, adapters or hub ids. The default is the newest run."
)

_FIRST_SCREEN = {
    "change of chosen, nats": ("chosen_displacement", 2, 1),
    "displaced, %": ("chosen_displaced_share", 1, 100),
    "accuracy, %": ("reward_accuracy", 1, 100),
}
"""Heading -> name in the summary, digits, and factor of a value that the first screen shows of every model."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool score runs/my-run --json"
    add_verb(app, "score", ScoreConfig, positionals=(_MODELS,), epilog=epilog)(run)


def run(config: ScoreConfig, console: Console, models: list[str] | None) -> None:
    """Measure how likely each model finds the chosen and rejected answers, and whether it is displaced."""
    from dpotool.measures.checkpoints import ALL, has_only_checkpoints, list_checkpoints
    from dpotool.measures.run import score_models
    from dpotool.runs.folder import newest_run

    if not models:
        models = [str(newest_run().path)]
        console.note(f"scoring the newest run, {models[0]}")
    which = config.checkpoints
    if which is None and all(has_only_checkpoints(model) for model in models):
        console.note(
            f"{', '.join(models)}: the folder holds checkpoints but no final model, so each checkpoint is scored"
        )
        which = ALL
    if which is not None:
        models = [path for model in models for path in list_checkpoints(model, which)]
        config = replace(config, checkpoints=None)  # each table is of one of them, and says so
    if config.dry_run:
        from dpotool.estimates.scoring import plan_scorings

        console.finish({"estimates": show_dry_run(partial(plan_scorings, models, config, progress=console), console)})
        return
    results = score_models(models, config, progress=console)
    if which is not None:
        _show_trajectory(results, console)
        return
    _show_scores(results, config.full, console)
    console.finish({"results": [_to_json(result) for result in results]})


def _show_scores(results: Sequence[ScoreResult], is_full: bool, console: Console) -> None:
    """Prints the verdict on each model, a table, and the paths of the files."""
    judged = [(result.label, result.summary["verdict"]) for result in results if result.summary["verdict"] is not None]
    for label, verdict in judged:
        console.answer(f"Verdict on {label}: {verdict['statement']}")
    is_whole = is_full or len(results) == 1
    for title, columns, rows in tabulate_scores(results) if is_whole else summarize_models(results):
        console.table(title, columns, rows)
    for line in (line for result in results for line in describe_noise(result) if is_full):
        console.say(line)
    for result in results:
        console.say(f"scores: {result.path}")
        if result.tokens_path is not None:
            console.say(f"tokens: {result.tokens_path}")
    if not is_whole:
        console.answer("--full prints every measure of each model. `dpotool compare` prints paired differences.")
    for next_ in dict.fromkeys(verdict["next"] for _, verdict in judged):
        console.answer(f"Next: {next_}")


def summarize_models(results: Sequence[ScoreResult]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns the tables of the first screen, one for each (data, split), with a row per model."""
    groups: dict[str, list[list[str]]] = {}
    for result in results:
        summary = result.summary
        title = f"{summary['data']} [{summary['split']}], n = {summary['n']}; 95 % bootstrap intervals over pairs"
        groups.setdefault(title, []).append([result.label, *_format_first_screen(summary)])
    return [(title, ["model", *_FIRST_SCREEN], rows) for title, rows in groups.items()]


def _format_first_screen(summary: Mapping[str, Any]) -> list[str]:
    return [format_interval(summary.get(key), digits, scale) for key, digits, scale in _FIRST_SCREEN.values()]


def _show_trajectory(results: Sequence[ScoreResult], console: Console) -> None:
    """Prints the answer, then a row per checkpoint."""
    from dpotool.compare.verdict import show_kind
    from dpotool.measures.checkpoints import describe_trajectory, name_checkpoint

    answer = describe_trajectory([result.summary for result in results])
    if answer is not None:
        console.say(answer)
    first = results[0].summary
    rows = []
    for result in results:
        summary, verdict = result.summary, result.summary["verdict"]
        kind = "no reference" if verdict is None else show_kind(verdict["kind"])
        rows.append([name_checkpoint(summary), *_format_first_screen(summary), kind])
    title = f"{first['data']} [{first['split']}], n = {first['n']}; 95 % bootstrap intervals over pairs"
    console.table(title, ["checkpoint", *_FIRST_SCREEN, "displacement"], rows)
    console.say(f"scores: {results[0].path} and one such table in every checkpoint")
    console.finish({"trajectory": answer, "results": [_to_json(result) for result in results]})


def _to_json(result: ScoreResult) -> dict[str, Any]:
    tokens = {} if result.tokens_path is None else {"tokens_path": str(result.tokens_path)}
    return {"path": str(result.path), **tokens, "label": result.label, **result.summary}


def tabulate_scores(results: Sequence[ScoreResult]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns the tables to print, one for each (data, split) that was scored, a column per model."""
    groups: dict[str, list[ScoreResult]] = {}
    for result in results:
        summary = result.summary
        groups.setdefault(f"{summary['data']} [{summary['split']}], n = {summary['n']}", []).append(result)
    tables = []
    for name, group in groups.items():
        rows = [
            [row.label, *(format_interval(result.summary.get(row.key), row.digits, row.scale) for result in group)]
            for measure in group[0].measures
            for row in measure.shown_values
        ]
        rows.append(["ties", *(_count(result.summary["ties"]) for result in group)])
        rows.append(["pairs left out", *(_describe_exclusions(result.summary) for result in group)])
        title = f"{name}; nats summed over completion tokens, 95 % bootstrap intervals over pairs"
        tables.append((title, ["", *(result.label for result in group)], rows))
    return tables


def describe_noise(result: ScoreResult) -> list[str]:
    """Returns a line on how much of the margins is rounding, or none where that was not measured."""
    noise = result.summary["noise_floor"]
    if noise is None or noise["logps"] is None:
        return []
    text = f"Rounding in {result.label}: {count(noise['n'], 'pair')}, scored again in other batches, moved by up to "
    text += f"{noise['logps']['largest']:.2g} nats."
    if noise["reward_margins"] is not None:
        text += f" Their reward margins moved by up to {noise['reward_margins']['largest']:.2g}; "
        text += f"{result.summary['ties']} of {result.summary['n']} margins are no larger than that and count as ties."
        beyond = result.summary["reward_accuracy_beyond_noise"]
        text += f" With ties as wrong, reward accuracy is {format_interval(beyond, 1, 100)} %."
    return [text]


def _count(n: int | None) -> str:
    return "-" if n is None else str(n)


def _describe_exclusions(summary: dict[str, Any]) -> str:
    excluded = summary["n_excluded"]
    return ", ".join(f"{count} {reason}" for reason, count in excluded.items()) or "0"
