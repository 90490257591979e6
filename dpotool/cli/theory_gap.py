"""`dpotool theory-gap`."""

from __future__ import annotations

from typing import Any

import typer

from dpotool.cli import theory_tables
from dpotool.cli.console import Console
from dpotool.cli.estimate import show_dry_run
from dpotool.cli.verbs import add_verb
from dpotool.gradients.config import TheoryConfig


def register(app: typer.Typer) -> None:
    """Adds the command."""
    add_verb(app, "theory-gap", TheoryConfig, epilog="Example: dpotool theory-gap --limit 100 --verify 16")(run)


def run(config: TheoryConfig, console: Console) -> None:
    """Estimate Theorem 2.1's u and v per pair, exact and measured gaps beside them, and which lambda to train with."""
    from dpotool.gradients.run import run_theory
    from dpotool.runs.folder import summary_path

    if config.dry_run:
        from dpotool.gradients.cost import plan_theory

        (estimate,) = show_dry_run(lambda: [plan_theory(config, progress=console)], console)
        console.finish(estimate)
        return
    result = run_theory(config, progress=console)
    show_summary(result.summary, console)
    console.say(f"theory table: {result.path}")
    if result.summary.get("drivers"):
        console.say(f"whole texts of these pairs: {summary_path(result.path)}")
    console.finish({"path": str(result.path), "interrupted": result.was_interrupted, **result.summary})
    if result.was_interrupted:
        console.note("interrupted: what was finished so far is in the table")
        raise typer.Exit(130)


def show_summary(summary: dict[str, Any], console: Console) -> None:
    """Prints what a theory summary holds, in the order in which a reader asks."""
    parameters = f"{summary['n_parameters']:,} parameters ({summary['parameters']})"
    title = f"{summary['label']} on {summary['data']} [{summary['split']}], n = {summary['n']}, {parameters}"
    console.table(title, ["", "here", "paper"], theory_tables.tabulate_theory(summary))
    console.say("paper: Llama-3-8B after SFT, UltraFeedback test set, gamma = 1 (arXiv:2502.07599)")
    console.table("Entanglement: what one DPO step on a pair by itself moves", *theory_tables.tabulate_cases(summary))
    console.table(
        "Gaps between a DPO-Shift and a DPO step: g1 of log pi(chosen), g2 of smoothed reward accuracy, "
        "over the learning rate",
        *theory_tables.tabulate_gaps(summary),
    )
    console.say("paper: Theorem 2.1 as printed, eta = eta1 = 1. self-step, batch: exact first order (docs/theory.md)")
    if "verification" in summary:
        proof = summary["verification"]
        console.table(
            f"Measured: real steps on {proof['n']} pairs in {proof['dtype']}, gaps over the learning rate; "
            "a slope of 2 says that only second order is left over",
            *theory_tables.tabulate_verification(proof),
        )
    _show_advice(summary, console)
    if summary["autograd_fallback"]:
        names = summary["autograd_fallback"]
        console.note(
            f"by autograd, pair after pair: {len(names)} parameters without a rule ({', '.join(names[:4])}...)"
        )
    if "check" in summary:
        check = summary["check"]
        outcome = "agrees" if check["passed"] else "DISAGREES"
        console.say(
            f"check: autograd {outcome} on {check['n']} pairs, largest relative error {check['largest_error']:.1e} "
            f"(allowed {check['tolerance']:.0e})"
        )


def _show_advice(summary: dict[str, Any], console: Console) -> None:
    if "advice" not in summary:
        console.note("no forecast: it needs --pairs-only off, and at least 4 pairs")
        return
    advice = summary["advice"][summary["advice_from"]]
    if advice["grid"]:
        step = {"adamw": "AdamW's first", "sgd": "a gradient"}[advice["optimizer"]]
        console.table(
            f"Forecast: {step} step, tried on pairs it was not taken from; nats per nat of margin that DPO gains; "
            "intervals over pairs, the step held as it is",
            *theory_tables.tabulate_forecast(advice),
        )
    best = advice["recommended_lambda"]
    console.say(f"recommended lambda: {'none' if best is None else f'{best:g}'}. {advice['reason']}")
    if not summary["at_reference"]:
        console.note("the forecast is of a DPO training that would start from this model, itself the reference")
    if summary.get("drivers") == []:
        console.say("no pair pushes the mean log pi(chosen) of the others down")
    if summary.get("drivers"):
        console.table(
            "Pairs that drive displacement: what their part in a gradient step on DPO's loss does to the mean "
            "log pi(chosen), nats per nat of margin that this step gains",
            *theory_tables.tabulate_drivers(summary["drivers"]),
        )
