"""`dpotool theory-gap`."""

from __future__ import annotations

from typing import Any

import typer

from dpotool.cli import theory_tables
from dpotool.cli.console import Console, show_dry_run
from dpotool.cli.verbs import add_verb
from dpotool.settings.scoring import TheoryConfig
from dpotool.wording import count


def register(app: typer.Typer) -> None:
    """Adds the command."""
    add_verb(app, "theory-gap", TheoryConfig, epilog="Example: dpotool theory-gap --limit 100 --verify 16")(run)


def run(config: TheoryConfig, console: Console) -> None:
    """Forecast, before training, what DPO and DPO-Shift will do to your pairs, and recommend a lambda."""
    from dpotool.gradients.run import run_theory
    from dpotool.runs.summaries import summary_path

    if config.dry_run:
        from dpotool.estimates.theory import plan_theory

        (estimate,) = show_dry_run(lambda: [plan_theory(config, progress=console)], console)
        console.finish(estimate)
        return
    result = run_theory(config, progress=console)
    show_answer(result.summary, console)
    if config.full:
        show_everything(result.summary, console)
    show_proofs(result.summary, console)
    console.say(f"theory table: {result.path}")
    console.say(f"summary, with the texts of these pairs: {summary_path(result.path)}")
    if not config.full:
        console.answer("--full also prints u and v, bands, gaps, entanglement and the pairs that matter most.")
    console.finish({"path": str(result.path), "interrupted": result.was_interrupted, **result.summary})
    if result.was_interrupted:
        console.note("interrupted: the table holds what was finished so far")
        raise typer.Exit(130)


def show_answer(summary: dict[str, Any], console: Console) -> None:
    """Prints the first screen: the recommended lambda with its reason, and the forecast."""
    advice = _find_advice(summary)
    console.answer(*theory_tables.say_advice(advice))
    console.answer(theory_tables.say_signs(summary))
    if advice is None:
        console.note("There is no forecast, because there are fewer than 4 pairs or --pairs-only was given.")
    elif not summary["at_reference"]:
        console.note(
            "The forecast is for a DPO training that would start from this model and take it as its reference."
        )
    title = f"{summary['label']} on {summary['data']} [{summary['split']}], n = {summary['n']}, 95 % intervals"
    if advice is None or not advice["grid"]:
        console.table(title, ["", "here", "paper"], theory_tables.tabulate_theory(summary))
    else:
        console.table(title, *theory_tables.tabulate_forecast(advice))
        console.say("chosen: change of log pi(chosen) in nats, for each nat of margin that DPO gains")
    console.answer(*theory_tables.say_drivers(summary))


def show_everything(summary: dict[str, Any], console: Console) -> None:
    """Prints what `--full` adds: the other columns of the forecast, the theorem, and the pairs with their texts."""
    advice = _find_advice(summary)
    if advice is not None and advice["grid"]:
        step = {"adamw": "AdamW", "sgd": "gradient"}[advice["optimizer"]]
        console.table(
            f"Forecast: one {step} step, evaluated on held-out pairs, scaled so that DPO gains 1 nat of margin; "
            "intervals treat the step as fixed",
            *theory_tables.tabulate_whole_forecast(advice),
        )
    parameters = f"{count(summary['n_parameters'], 'parameter')} ({summary['parameters']})"
    console.table(f"Theorem 2.1, over {parameters}", ["", "here", "paper"], theory_tables.tabulate_theory(summary))
    console.say("paper: Llama-3-8B after SFT, UltraFeedback test set, gamma = 1 (arXiv:2502.07599)")
    console.table(
        "Entanglement: what one DPO step on a single pair does to that pair", *theory_tables.tabulate_cases(summary)
    )
    console.table(
        "Gaps between a DPO-Shift and a DPO step, divided by the learning rate: g1 of log pi(chosen), g2 of smoothed "
        "reward accuracy",
        *theory_tables.tabulate_gaps(summary),
    )
    console.say(
        "paper: Theorem 2.1 as printed, with eta = eta1 = 1. self-step, batch: exact to first order (docs/theory.md)"
    )
    if summary.get("drivers"):
        console.table(
            "Pairs that drive displacement: how far their part of a gradient step of DPO moves the mean log "
            "pi(chosen), in nats for each nat of margin that the step gains",
            *theory_tables.tabulate_drivers(summary["drivers"]),
        )


def show_proofs(summary: dict[str, Any], console: Console) -> None:
    """Prints what `--verify` measured and what `--check` found, if they were given."""
    if "verification" in summary:
        proof = summary["verification"]
        console.table(
            f"Real steps on {count(proof['n'], 'pair')} in {proof['dtype']}: gaps divided by the learning rate. "
            "A slope of 2 means that the prediction is right to first order.",
            *theory_tables.tabulate_verification(proof),
        )
    if summary["autograd_fallback"]:
        names = summary["autograd_fallback"]
        console.note(
            f"No fast rule covers {count(len(names), 'parameter')}, differentiated by autograd, one pair at a time "
            f"({', '.join(names[:4])}...)"
        )
    if "check" in summary:
        check = summary["check"]
        outcome = "agrees" if check["passed"] else "DISAGREES"
        console.say(
            f"check: autograd {outcome} on {count(check['n'], 'pair')}; the largest relative error is "
            f"{check['largest_error']:.1e} ({check['tolerance']:.0e} is allowed)"
        )


def _find_advice(summary: dict[str, Any]) -> dict[str, Any] | None:
    return summary["advice"][summary["advice_from"]] if "advice" in summary else None
