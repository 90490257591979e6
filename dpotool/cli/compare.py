"""`dpotool compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.reading import CompareConfig

if TYPE_CHECKING:
    from dpotool.compare.findings import Findings

_RUNS = Positional("runs", list[str], "Scored runs, or a sweep, which stands for its runs.", required=True)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool compare runs/dpo runs/shift --format markdown"
    add_verb(app, "compare", CompareConfig, positionals=(_RUNS,), epilog=epilog)(run)


def run(config: CompareConfig, console: Console, runs: list[str]) -> None:
    """Compare scored models pair by pair, with intervals and tests, and recommend one of them."""
    from dpotool.compare.compared_table import check_format
    from dpotool.compare.eligibility import Rule
    from dpotool.compare.findings import find_out

    check_format(config.format)
    findings = find_out(
        runs,
        baseline=config.baseline,
        data=config.data,
        split=config.split,
        limit=config.limit,
        seed=config.seed,
        rule=Rule(config.delta, config.margin_share),
    )
    for problem in findings.comparison.problems:
        console.warn(problem)
    if config.format == "table":
        show_first_screen(findings, console)
        if config.full:
            show_full(findings, console)
    elif config.format == "csv":
        console.say(write_csv(findings))
    else:
        console.say(write_page(findings, config.format))
    console.finish(findings.to_dict())


def show_first_screen(findings: Findings, console: Console) -> None:
    """Prints the conclusions, a table that fits 80 columns, and what to do next."""
    from dpotool.compare.compared_table import tabulate_differences
    from dpotool.compare.controls import SCALED_NOTE, SCALED_TITLE, summarize_controls

    base = findings.comparison.baseline
    console.answer(f"Verdict on {base}: {findings.statement}")
    if findings.recommendation is not None:
        console.answer(f"Recommendation: {findings.recommendation.statement}")
    console.table(describe_setting(findings), *tabulate_differences(findings.comparison, findings.verdicts))
    console.answer(
        f"Differences from {base} over the same pairs. chosen: mean log pi(chosen); margin: mean reward margin as a "
        f"share of {base}'s."
    )
    columns, rows = summarize_controls(findings.controls)
    if rows:
        console.table(SCALED_TITLE, columns, rows)
        console.answer(SCALED_NOTE)
    for sentence in findings.judged_sentences:
        console.answer(sentence)
    if findings.theory is not None:
        console.answer(f"Theory: {findings.theory['statement']}")
    console.answer(f"Next: {findings.next_action}")


def write_csv(findings: Findings) -> str:
    """Returns a row per model, then one per setting that was trained with several seeds, as one table."""
    import pandas as pd

    from dpotool.compare.compared_table import build_comparison_frame
    from dpotool.compare.seeds import build_seeds_frame
    from dpotool.runs.atomic import as_cells

    frame = build_comparison_frame(findings.comparison, findings.verdicts, findings.win_rates)
    if findings.seeds:  # as objects, or counts would become 120.0 where a row has none
        frame = pd.concat([frame.astype(object), build_seeds_frame(findings.seeds).astype(object)])
    return as_cells(frame).to_csv(index=False, lineterminator="\n").rstrip("\n")


def show_full(findings: Findings, console: Console) -> None:
    """Prints every number of the differences, effect sizes with ties, seeds and controls; a sentence for each model."""
    from dpotool.compare.compared_table import EFFECTS_TITLE, tabulate_comparison, tabulate_effects, tabulate_seeds
    from dpotool.compare.controls import CONTROLS_TITLE, tabulate_controls

    base = findings.comparison.baseline
    title = f"Differences from {base}, in nats unless stated otherwise; p-values adjusted by Holm"
    console.table(title, *tabulate_comparison(findings.comparison, findings.verdicts, findings.win_rates))
    if findings.seeds:
        title = f"Over seeds: differences from {base} of the same seed; intervals over pairs and training"
        console.table(title, *tabulate_seeds(findings.seeds))
    if findings.comparison.differences:
        console.table(EFFECTS_TITLE.format(baseline=base), *tabulate_effects(findings.comparison))
    if findings.controls.checks:
        console.table(CONTROLS_TITLE, *tabulate_controls(findings.controls))
    console.say()
    for sentence in findings.sentences:
        console.say(sentence)


def write_page(findings: Findings, format_: str) -> str:
    """Returns the tables for a paper, as LaTeX or Markdown; in Markdown all that is said follows as a list."""
    from dpotool.compare.compared_table import tabulate_comparison, tabulate_effects, tabulate_seeds, write_rows
    from dpotool.compare.controls import tabulate_controls

    tables = [
        tabulate_comparison(findings.comparison, findings.verdicts, findings.win_rates),
        tabulate_effects(findings.comparison),
    ]
    tables += [tabulate_controls(findings.controls)] if findings.controls.checks else []
    tables += [tabulate_seeds(findings.seeds)] if findings.seeds else []
    page = "\n".join(write_rows(*each, format_) for each in tables).rstrip("\n")
    if format_ != "markdown":
        return page
    conclusions = [f"Verdict on {findings.comparison.baseline}: {findings.statement}"]
    if findings.recommendation is not None:
        conclusions.append(f"Recommendation: {findings.recommendation.statement}")
    if findings.theory is not None:
        conclusions.append(f"Theory: {findings.theory['statement']}")
    conclusions.append(f"Next: {findings.next_action}")
    said = ((*findings.sentences, *findings.judged_sentences), conclusions)
    return "\n\n".join([page, *("\n".join(f"- {each}" for each in part) for part in said if part)])


def describe_setting(findings: Findings) -> str:
    """Returns the title of the table: the data, the number of pairs, and what the columns are."""
    base = findings.comparison.runs.set_index("label").loc[findings.comparison.baseline]
    prompts = {each.n_prompts or 0 for each in findings.comparison.differences.values() if each.prompts_repeat}
    drawn = f", drawn by prompt ({', '.join(map(str, sorted(prompts)))} prompts)" if prompts else ""
    return f"{base['data']} [{base['split']}], n = {base['n']}, 95 % bootstrap intervals over pairs{drawn}"
