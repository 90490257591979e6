"""`dpotool judge`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from dpotool.cli.console import Console, format_interval, format_number
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.answers import JudgeConfig
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.judging.run import JudgeResult

_ANSWERS = Positional(
    "answers", list[str] | None, "Run folders with answers (a sweep stands for its runs), or files of answers."
)


_COLUMNS_NOTE = (
    "ties half: a tie counts as half a win; no ties: ties are left out; ties win: a tie counts as a win; same length: "
    "estimated for answers of equal length."
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool judge runs/demo"
    add_verb(app, "judge", JudgeConfig, positionals=(_ANSWERS,), epilog=epilog)(run)


def run(config: JudgeConfig, console: Console, answers: list[str] | None) -> None:
    """Compare answers with a baseline's by a judge: win rates with intervals, or MT-Bench grades."""
    from dpotool.compare.win_rates import state_result
    from dpotool.judging.answering import expand_models
    from dpotool.judging.run import import_results, judge_answers

    names = expand_models(answers or [])
    if config.dry_run:
        show_plan(names, config, console)
        return
    if config.bench is not None:
        grade(names, config, console)
        return
    if config.judgments is not None:
        results = import_results(names, config)
    else:
        results = judge_answers(names, config, progress=console)
    for result in results:
        console.answer(state_result(result.label, result.summary["baseline"], result.summary))
    console.table(describe_judge(results), *tabulate_results(results))
    console.answer(_COLUMNS_NOTE)
    for line in describe_checks(results):
        console.answer(line)
    for result in results:
        console.say(f"judgments: {result.path}")
    console.finish({"results": [{"path": str(result.path), **result.summary} for result in results]})


def grade(names: Sequence[str], config: JudgeConfig, console: Console) -> None:
    """Grades answers one by one, and prints the means by turn and category."""
    from dpotool.compare.ratings import state_ratings
    from dpotool.judging.mt_bench import grade_answers, import_grades

    results = import_grades(config) if config.judgments else grade_answers(names, config, progress=console)
    for sentence in state_ratings([result.summary for result in results]):
        console.answer(sentence)
    keys = ["overall", *(f"turn_{turn}" for turn in (1, 2) if all(f"turn_{turn}" in r.summary for r in results))]
    rows = []
    for result in results:
        difference = result.summary["difference"]
        rows.append([result.label, *(format_interval(result.summary[key]) for key in keys)])
        rows[-1].append("-" if difference is None else format_interval(difference["difference"]))
    base = results[0].summary["baseline"]
    title = f"Ratings by {results[0].summary['judge']}, 1 to 10; 95 % intervals over questions"
    console.table(title, ["", *(key.replace("_", " ") for key in keys), f"from {base}"], rows)
    categories = sorted({name for result in results for name in result.summary["by_category"]})
    if categories:
        cells = [
            [name, *(format_interval(result.summary["by_category"].get(name), 1) for result in results)]
            for name in categories
        ]
        console.table("By category", ["", *(result.label for result in results)], cells)
    for result in results:
        if result.summary["without_rating"]:
            console.warn(
                f"{result.label}: {count(result.summary['without_rating'], 'answer has', 'answers have')} no rating"
            )
        console.say(f"ratings: {result.path}")
    console.finish({"results": [{"path": str(result.path), **result.summary} for result in results]})


def show_plan(names: Sequence[str], config: JudgeConfig, console: Console) -> None:
    """Prints how many requests the judge would get."""
    from dataclasses import asdict

    from dpotool.judging.mt_bench import plan_grading
    from dpotool.judging.run import plan_asking

    plans = plan_asking(names, config) if config.bench is None else plan_grading(names, config)
    n, characters = sum(plan.n_requests for plan in plans), sum(plan.characters for plan in plans)
    console.say(f"The judge would be asked {count(n, 'time')}, to read about {count(characters // 4, 'token')} in all.")
    rows = [
        [p.label, f"{p.n_answers:,}", f"{p.n_identical:,}", f"{p.n_there:,}", f"{p.n_requests:,}", f"{p.characters:,}"]
        for p in plans
    ]
    columns = ["", "answers", "identical", "replies there", "requests", "characters"]
    console.table("What would be asked, counting four characters as a token", columns, rows)
    console.finish({"plans": [asdict(plan) for plan in plans]})


def describe_judge(results: Sequence[JudgeResult]) -> str:
    """Returns the title of the table: the judge, the baseline, and the caveat of this judge."""
    summary = results[0].summary
    proxy = " (a proxy, not a judgment of quality)" if summary["is_proxy"] else ""
    return f"Win rate in % over {summary['baseline']}, judged by {summary['judge']}{proxy}; 95 % intervals"


def tabulate_results(results: Sequence[JudgeResult]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows, a model a row."""
    columns = ["", "win/tie/loss", "ties half", "no ties", "ties win", "same length"]
    return columns, [[result.label, *_cells(result.summary)] for result in results]


def _cells(summary: dict[str, Any]) -> list[str]:
    rate, control = summary["win_rate"], summary["length_control"]
    return [
        f"{summary['wins']}/{summary['ties']}/{summary['losses']}",
        format_interval(rate["ties_half"], 0, 100),
        _percent(rate["without_ties"]["value"]),
        _percent(rate["ties_as_wins"]["value"]),
        format_interval(control["win_rate"], 0, 100) if control else "-",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else format_number(100 * value, 1)


def describe_checks(results: Sequence[JudgeResult]) -> list[str]:
    """Returns a line for each thing that a reader of the rates has to know: verdicts that lack, order, length."""
    lines = [f"About this judge: {results[0].summary['caveat']}."]
    for result in results:
        summary, said = result.summary, []
        if summary["without_outcome"]:
            reasons = {k: v for k, v in summary["verdicts"].items() if k not in ("asked", "judged", "identical")}
            listed = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
            questions = count(summary["n_questions"], "question")
            said.append(f"{summary['without_outcome']} of {questions} have no verdict ({listed})")
        if summary["identical"]:
            said.append(
                f"{count(summary['identical'], 'question')} got the same answer from both, which counts as a tie"
            )
        if summary["doubtful"]:
            said.append(
                f"{count(summary['doubtful'], 'reply', 'replies')} opened with a verdict and then contradicted it"
            )
        order, control = summary["order_effect"], summary["length_control"]
        if order:
            agreement = format_interval(order["agreement"], 0, 100)
            said.append(f"both orders agree on {agreement} %, position bias {format_interval(order['position_bias'])}")
        longer = format_interval(control["longer_preferred"], 1, 100) if control else "-"
        if longer != "-":
            said.append(f"the longer answer is preferred in {longer} %")
        if summary["n"]:
            said.append(f"p = {summary['p_adjusted']:.2g} ({summary['test']}, Holm over {summary['n_compared']})")
        lines.append(f"{result.label}: {'; '.join(said)}.")
    return lines
