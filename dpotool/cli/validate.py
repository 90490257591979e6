"""`dpotool validate`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.reading import ValidateConfig
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.curation.validation import Validation

PAIRS = Positional("pairs", str | None, "The pairs, as --data takes them; without either, the built-in ones.")
N_SHOWN = 4
"""Pairs whose tokens are shown with --model and --full."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool validate pairs.jsonl --model runs/my-run --full"
    add_verb(app, "validate", ValidateConfig, positionals=(PAIRS,), epilog=epilog)(run)


def run(config: ValidateConfig, console: Console, pairs: str | None) -> None:
    """Check preference pairs before training: labels, splits, tokens, shortcuts and form."""
    from dpotool.curation import pages
    from dpotool.curation.validation import validate
    from dpotool.runs.atomic import write_text

    config = replace(config, data=pairs or config.data)
    config.check_switches()
    format_ = pages.choose_format(config.output, config.format) if config.output or config.format else None
    validation = validate(config, progress=console)
    if format_ is not None and config.output is None:
        console.say(pages.write_validation(validation, format_))
    else:
        show(validation, console, full=config.full)
    if format_ is not None and config.output is not None:
        console.say(f"page: {write_text(config.output, pages.write_validation(validation, format_))}")
    if validation.clean is not None:
        left_out = ", ".join(f"{n} {name}" for name, n in validation.clean.left_out.items()) or "nothing"
        console.say(
            f"written: {count(validation.clean.n_written, 'row')} to {validation.clean.path}; left out: {left_out}"
        )
    console.finish(validation.to_dict())
    if config.strict and validation.checkup.count("error"):
        raise typer.Exit(1)


def show(validation: Validation, console: Console, *, full: bool) -> None:
    """Prints the answer and the table; with `full` the examples, reasons and remedies behind it."""
    from dpotool.curation import pages

    console.answer(pages.say_outcome(validation))
    if validation.checkup.findings:
        columns, rows = pages.tabulate_findings(validation)
        order = (1, 0, 2, 3)  # the finding leads, and what is so would not fit
        console.table("", [columns[place] for place in order], [[row[place] for place in order] for row in rows])
    if not full:
        for finding in validation.checkup.findings:
            console.answer(f"{finding.check.name}: {finding.found.says or finding.check.title}.")
        console.answer("--full shows two examples of each finding, why it matters and what to do.")
        return
    for finding in validation.checkup.findings:
        console.say()
        console.say(
            f"{finding.check.name} ({finding.check.severity}): {finding.check.title}; {count(finding.count, 'row')}"
        )
        if finding.found.says:
            console.say(f"  in figures: {finding.found.says}")
        for row, text in finding.examples(validation.material):
            console.say(f"  row {row}: {text}")
        console.say(f"  why: {finding.check.why}")
        console.say(f"  what to do: {finding.check.remedy}")
    console.say()
    show_tokens(validation, console)
    for sentence in pages.say_rest(validation):
        console.say(sentence)


def show_tokens(validation: Validation, console: Console) -> None:
    """Prints ids and text of some pairs around the place where the answers begin, in colour on a terminal."""
    view = validation.material.tokens
    if view is None:
        return
    merged = [row for row, pair in view.encoded.items() if pair.is_merged]
    console.say("Tokens around the boundary (‖) between prompt and answer, id‘text’, and the end of the answer:")
    for row in [*merged, *(row for row in view.encoded if row not in merged)][:N_SHOWN]:
        for side in ("chosen", "rejected"):
            pair = view.encoded[row]
            ids = pair.chosen_ids if side == "chosen" else pair.rejected_ids
            parts = [
                (f"row {row} {side}: … {view.show_tokens(pair.prompt_ids[-4:])}", "dim"),
                (" ‖ ", "bold red"),
                (view.show_tokens(ids[:4]), "green"),
                (f" … {view.show_tokens(ids[4:][-3:])}", "cyan"),
            ]
            console.say_styled(parts)
    console.say()
