"""`dpotool theory-gap`: the command, its sentences, and the columns and rows of its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import typer

from dpotool.cli.console import Console, format_interval, show_dry_run
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
    console.answer(*say_advice(advice))
    console.answer(say_signs(summary))
    if advice is None:
        console.note("There is no forecast, because there are fewer than 4 pairs or --pairs-only was given.")
    elif not summary["at_reference"]:
        console.note(
            "The forecast is for a DPO training that would start from this model and take it as its reference."
        )
    title = f"{summary['label']} on {summary['data']} [{summary['split']}], n = {summary['n']}, 95 % intervals"
    if advice is None or not advice["grid"]:
        console.table(title, ["", "here", "paper"], tabulate_theory(summary))
    else:
        console.table(title, *tabulate_forecast(advice))
        console.say("chosen: change of log pi(chosen) in nats, for each nat of margin that DPO gains")
    console.answer(*say_drivers(summary))


def show_everything(summary: dict[str, Any], console: Console) -> None:
    """Prints what `--full` adds: the other columns of the forecast, the theorem, and the pairs with their texts."""
    advice = _find_advice(summary)
    if advice is not None and advice["grid"]:
        step = {"adamw": "AdamW", "sgd": "gradient"}[advice["optimizer"]]
        console.table(
            f"Forecast: one {step} step, evaluated on held-out pairs, scaled so that DPO gains 1 nat of margin; "
            "intervals treat the step as fixed",
            *tabulate_whole_forecast(advice),
        )
    parameters = f"{count(summary['n_parameters'], 'parameter')} ({summary['parameters']})"
    console.table(f"Theorem 2.1, over {parameters}", ["", "here", "paper"], tabulate_theory(summary))
    console.say("paper: Llama-3-8B after SFT, UltraFeedback test set, gamma = 1 (arXiv:2502.07599)")
    console.table("Entanglement: what one DPO step on a single pair does to that pair", *tabulate_cases(summary))
    console.table(
        "Gaps between a DPO-Shift and a DPO step, divided by the learning rate: g1 of log pi(chosen), g2 of smoothed "
        "reward accuracy",
        *tabulate_gaps(summary),
    )
    console.say(
        "paper: Theorem 2.1 as printed, with eta = eta1 = 1. self-step, batch: exact to first order (docs/theory.md)"
    )
    if summary.get("drivers"):
        console.table(
            "Pairs that drive displacement: how far their part of a gradient step of DPO moves the mean log "
            "pi(chosen), in nats for each nat of margin that the step gains",
            *tabulate_drivers(summary["drivers"]),
        )


def show_proofs(summary: dict[str, Any], console: Console) -> None:
    """Prints what `--verify` measured and what `--check` found, if they were given."""
    if "verification" in summary:
        proof = summary["verification"]
        console.table(
            f"Real steps on {count(proof['n'], 'pair')} in {proof['dtype']}: gaps divided by the learning rate. "
            "A slope of 2 means that the prediction is right to first order.",
            *tabulate_verification(proof),
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


Table = tuple[list[str], list[list[str]]]
TEXT_WIDTH = 48


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


def tabulate_cases(summary: dict[str, Any]) -> Table:
    """Returns the table of entanglement cases."""
    rows = [
        [case.replace("_", " "), str(share["n"]), format_interval(share, 1, 100)]
        for case, share in summary["entanglement"].items()
    ]
    return ["case", "pairs", "share, %"], rows


def tabulate_gaps(summary: dict[str, Any]) -> Table:
    """Returns the table of gaps: a row per shift factor and kind, with the share of signs that the paper has wrong."""
    rows = []
    for f, kinds in summary["gaps"].items():
        for kind, gaps in kinds.items():
            signs = summary["sign_disagreements"][f].get(kind)
            wrong = [format_interval(signs[gap], 1, 100) if signs else "-" for gap in ("g1", "g2")]
            rows.append(
                [f, kind.replace("_", "-"), format_significant(gaps["g1"]), format_significant(gaps["g2"]), *wrong]
            )
    return ["lambda", "gap", "g1", "g2", "pairs whose printed g1 has the wrong sign, %", "g2, %"], rows


def tabulate_verification(proof: dict[str, Any]) -> Table:
    """Returns the table of measured beside predicted gaps, at the smallest learning rate."""
    rows = []
    for optimizer, by_shift in proof["optimizers"].items():
        for f, gaps in by_shift.items():
            for name, gap in gaps.items():
                last = gap["ladder"][-1]
                slope = "-" if gap["slope"] is None else f"{gap['slope']:.2f}"
                rates = f"{gap['ladder'][0]['rate']:.1e} to {last['rate']:.1e}"
                rows.append([optimizer, f, name, f"{gap['predicted']:.5g}", f"{last['measured']:.5g}", slope, rates])
    return ["optimizer", "f", "gap", "predicted", "measured", "slope of what is left", "learning rates"], rows


def say_advice(advice: Mapping[str, Any] | None) -> list[str]:
    """Returns the recommended lambda and why, a sentence a line; nothing without a forecast."""
    if advice is None:
        return []
    if not advice["grid"]:
        return ["No lambda can be recommended.", advice["reason"]]
    f = advice["recommended_lambda"]
    dpo, cell = advice["grid"]["1"], advice["grid"][f"{f:g}"]
    dpo_effect = f"DPO is forecast to {_say_change(dpo['chosen_change']['mean'])} for each nat of margin it gains"
    if advice["basis"] == "dpo":
        lowest = advice["lowest_affordable_lambda"]
        fallback = (
            f", {lowest:g} is the smallest lambda for which a loss of 3 points of accuracy is ruled out"
            if lowest < 1
            else ""
        )
        return [
            "Recommended lambda: 1, which is DPO itself.",
            f"{dpo_effect}, so its first step shows no displacement to prevent.",
            f"Longer training can still displace them: check a short DPO run. If they fall there{fallback}."
            if fallback
            else "Longer training can still displace them: check a short DPO run.",
        ]
    why = {
        "keeps_chosen": "It is the largest lambda at which the chosen answers are not forecast to fall.",
        "limits_cost": "It is the smallest lambda for which these pairs rule out a loss of 3 points of accuracy.",
    }[advice["basis"]]
    if f == 1:
        why = (
            "On these pairs no smaller lambda is shown to lose less than 3 points of accuracy and to keep half of the "
            "margin."
        )
    else:
        change = cell["chosen_change"]["mean"]
        dpo_effect += f", and lambda {f:g} to {'lower' if change < 0 else 'raise'} them by {abs(change):.2f}"
    return [f"Recommended lambda: {f:g}. {why}", f"{dpo_effect}."]


def _say_change(change: float) -> str:
    return f"{'lower' if change < 0 else 'raise'} the chosen answers by {abs(change):.2f} nats"


def say_signs(summary: Mapping[str, Any]) -> str:
    """Returns what Theorem 2.1 says of these pairs, beside what it says of the paper's."""
    share, paper = 100 * summary["u_positive_share"]["value"], 100 * summary["u_positive_share"]["paper"]
    cost, paper_cost = 100 * summary["v_negative_share"]["value"], 100 * summary["v_negative_share"]["paper"]
    return (
        f"By Theorem 2.1 a smaller lambda raises the chosen answer of {share:.1f} % of the pairs "
        f"(paper: {paper:.1f} %) and costs accuracy on {cost:.1f} % (paper: {paper_cost:.1f} %)."
    )


def say_drivers(summary: Mapping[str, Any]) -> list[str]:
    """Returns which pairs push the others down most, where a forecast knows."""
    drivers = summary.get("drivers")
    if drivers is None:
        return []
    if not drivers:
        return ["No pair pushes the chosen answers of the other pairs down."]
    pairs = ", ".join(str(pair["pair_id"]) for pair in drivers)
    return [f"These pairs push the chosen answers of the others down most: {pairs}."]


def tabulate_forecast(advice: Mapping[str, Any]) -> Table:
    """Returns the forecast of the first screen, a row per lambda; the recommended one is marked."""
    rows = [
        [
            _mark(f, advice),
            format_interval(cell["chosen_change"], 2),
            format_interval(cell["margin_change"], 0, 100),
            format_interval(cell["accuracy"], 1, 100),
        ]
        for f, cell in advice["grid"].items()
    ]
    return ["lambda", "chosen", "margin, % of DPO's", "reward accuracy, %"], rows


def tabulate_whole_forecast(advice: Mapping[str, Any]) -> Table:
    """Returns every column of the forecast, a row per lambda."""
    rows = [
        [
            _mark(f, advice),
            format_interval(cell["chosen_change"], 2),
            format_interval(cell["rejected_change"], 2),
            format_interval(cell["margin_change"], 1, 100),
            format_interval(cell["accuracy"], 1, 100),
            format_interval(cell["self_step_admissible_share"], 1, 100),
        ]
        for f, cell in advice["grid"].items()
    ]
    columns = ["lambda", "chosen", "rejected", "margin, % of DPO's", "reward accuracy, %"]
    return [*columns, "pairs whose band includes it, %"], rows


def _mark(f: str, advice: Mapping[str, Any]) -> str:
    return f"{f} *" if float(f) == advice["recommended_lambda"] else f


def tabulate_drivers(drivers: list[dict[str, Any]]) -> Table:
    """Returns the table of the pairs that push the chosen answers down most."""
    rows = [
        [
            str(pair["pair_id"]),
            *(f"{pair[name]:+.3f}" for name in ("push", "own_push")),
            *(_shorten(pair[name]) for name in ("chosen", "rejected")),
        ]
        for pair in drivers
    ]
    return ["pair", "on the others", "on itself", "chosen", "rejected"], rows


def format_significant(value: Mapping[str, float | None]) -> str:
    """Returns '1.23e+04 [1.1e+04, 1.4e+04]': gaps span many powers of ten."""
    mean, low, high = value["mean"], value["ci_low"], value["ci_high"]
    if mean is None:
        return "-"
    if low is None or high is None or math.isnan(low):
        return f"{mean:.4g}"
    return f"{mean:.4g} [{low:.3g}, {high:.3g}]"


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= TEXT_WIDTH else flat[: TEXT_WIDTH - 3] + "..."
