"""`dpotool theory-gap`."""

from __future__ import annotations

from typing import Any

import typer

from dpotool.cli.console import Console, format_interval
from dpotool.cli.verbs import add_verb
from dpotool.theory.config import TheoryConfig


def register(app: typer.Typer) -> None:
    """Adds the command."""
    add_verb(app, "theory-gap", TheoryConfig, epilog="Example: dpotool theory-gap --limit 100")(run)


def run(config: TheoryConfig, console: Console) -> None:
    """Estimate Theorem 2.1's u and v per pair from exact gradient products, with the admissible band of lambda."""
    from dpotool.cli.demo import locate_model
    from dpotool.theory.run import run_theory

    result = run_theory(config, progress=console, locate=locate_model(console))
    summary = result.summary
    parameters = f"{summary['n_parameters']:,} parameters"
    title = f"{summary['label']} on {summary['data']} [{summary['split']}], n = {summary['n']}, {parameters}"
    console.table(title, ["", "here", "paper"], tabulate_theory(summary))
    console.table("Entanglement: what one DPO step on a pair by itself moves", *tabulate_cases(summary))
    console.table(
        "The theorem's gaps as printed: g1 = (1-f) mean u, g2 = (1-f) mean v (eta and eta1 left at 1)",
        *tabulate_gaps(summary),
    )
    console.say("paper: Llama-3-8B after SFT, UltraFeedback test set, gamma = 1 (arXiv:2502.07599)")
    console.say(f"theory table: {result.path}")
    console.finish({"path": str(result.path), "interrupted": result.was_interrupted, **summary})
    if result.was_interrupted:
        console.note("interrupted: the pairs finished so far are in the table")
        raise typer.Exit(130)


def tabulate_theory(summary: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the main table: here, and in the paper."""
    band = summary["band"]
    return [
        ["pairs with u > 0, %", format_interval(summary["u_positive_share"], 1, 100), "71.4"],
        ["pairs with v < 0, %", format_interval(summary["v_negative_share"], 1, 100), "81.7"],
        ["mean u", format_interval(summary["u"], 1), "4.84e+08"],
        ["mean v", format_interval(summary["v"], 1), "-4.28e+09"],
        ["pairs with <W,L> > 0, %", format_interval(band["bounded_share"], 1, 100), "-"],
        ["median band of f, lower end", format_interval(band["low_median"], 3), "-"],
        ["median band of f, upper end", format_interval(band["high_median"], 3), "-"],
        ["median of its centre |W|/|L|", format_interval(band["centre_median"], 3), "-"],
        ["pairs left out", str(sum(summary["n_excluded"].values())), "-"],
    ]


def tabulate_cases(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the table of entanglement cases."""
    rows = [
        [case.replace("_", " "), str(share["n"]), format_interval(share, 1, 100)]
        for case, share in summary["entanglement"].items()
    ]
    return ["case", "pairs", "share, %"], rows


def tabulate_gaps(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows of the table of gaps by shift factor, with the share of pairs whose band holds it."""
    admissible = summary["band"]["admissible_share"]
    rows = [
        [f, format_interval(gaps["g1"], 1), format_interval(gaps["g2"], 1), format_interval(admissible.get(f), 1, 100)]
        for f, gaps in summary["paper_gaps"].items()
    ]
    return ["f", "g1", "g2", "chosen up and rejected down, % of pairs"], rows
