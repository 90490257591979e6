"""`dpotool generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from dpotool.cli.console import Console, format_interval, format_number
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.answers import GenerateConfig
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.judging.answering import GenerateResult

_MODELS = Positional(
    "models",
    list[str] | None,
    "Run folders, a sweep, checkpoints or hub ids. The default is the newest run. A file of answers is summarised.",
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool generate runs/demo --limit 100 --temperature 0.7"
    add_verb(app, "generate", GenerateConfig, positionals=(_MODELS,), epilog=epilog)(run)


def run(config: GenerateConfig, console: Console, models: list[str] | None) -> None:
    """Let models answer prompts, and measure length, endings, repetition and distance from the reference."""
    from dpotool.judging.answering import expand_models, generate_answers
    from dpotool.runs.folder import newest_run

    if not models and config.endpoint is None:
        models = [str(newest_run().path)]
        console.note(f"answering with the newest run, {models[0]}")
    names = expand_models(models or [])
    results = generate_answers(names, config, progress=console)
    for sentence in describe_answers(results):
        console.answer(sentence)
    console.table(describe_setting(results), *tabulate_answers(results))
    for result in results:
        for reason, n in result.left_out.items():
            console.warn(f"{result.label}: {count(n, 'question has', 'questions have')} no answer: {reason}")
    for result in results:
        if result.path is not None:
            console.say(f"answers: {result.path}")
    console.finish({"results": [{"path": str(result.path), **result.summary} for result in results]})


def describe_setting(results: Sequence[GenerateResult]) -> str:
    """Returns the title of the table."""
    n = sorted({result.summary["n"] for result in results})
    base = next((each.summary["baseline"] for each in results if each.summary["baseline"]), None)
    same = f"; same: identical to {base}'s" if base else ""
    asked = next((result.path.stem for result in results if result.path), "the same questions")
    return f"Answers to {asked}, n = {' to '.join(map(str, n))}{same}; 95 % intervals"


def describe_answers(results: Sequence[GenerateResult]) -> list[str]:
    """Returns a sentence on length for each model beside the baseline, and one on how answers end."""
    sentences = [_describe_length(result) for result in results if result.summary["longer"] is not None]
    summaries = [result.summary for result in results]
    n = sum(summary["n"] for summary in summaries)
    if all("cut_off" in summary for summary in summaries):
        cut = sum(round(summary["cut_off"]["mean"] * summary["n"]) for summary in summaries)
        empty = sum(summary["empty"] for summary in summaries)
        sentences.append(f"Of {count(n, 'answer')}, {cut} were cut off at the token limit and {empty} are empty.")
    return sentences


def _describe_length(result: GenerateResult) -> str:
    difference, base = result.summary["longer"]["difference"], result.summary["baseline"]
    low, high = difference["ci_low"], difference["ci_high"]
    if not low * high > 0:
        return f"{result.label} answers about as long as {base}."
    near, far = sorted((abs(low), abs(high)))
    how = "longer" if difference["mean"] > 0 else "shorter"
    return f"{result.label} answers {abs(difference['mean']):.0f} [{near:.0f}, {far:.0f}] characters {how} than {base}."


def tabulate_answers(results: Sequence[GenerateResult]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows, a model a row."""
    has_tokens = all("tokens" in result.summary for result in results)
    has_ratio = any(result.summary["kl_per_token"] for result in results)
    wanted = [("tokens" if has_tokens else "characters", "tokens" if has_tokens else "characters", 0, 1)]
    wanted += [("same, %", "identical", 0, 100)] if len(results) > 1 else []
    wanted += [("log-ratio/token", "kl_per_token", 2, 1)] if has_ratio else []
    rows = [
        [
            result.label,
            *(format_interval(result.summary[key], digits, scale) for _, key, digits, scale in wanted),
            format_number(100 * result.summary["repetition"]["mean"], 1),
        ]
        for result in results
    ]
    return ["", *(title for title, *_ in wanted), "repeated, %"], rows
