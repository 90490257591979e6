"""Which of the trained models to take, and whether the theory had said so.

The knee: of the runs whose reward accuracy lies within the baseline's own 95 % interval, the one that keeps the chosen
log-likelihood highest, if that gain is beyond its interval and chance. docs/verdict.md has the rule and its limits.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from dpotool.results.differences import Comparison, is_shown
from dpotool.results.wording import format_interval, say_if_few

ADVICE, PAPER = "The forecast of theory-gap", "Theorem 2.1 as printed"
_NO_SCALE = (
    "On these pairs DPO's mean margin cannot be told from none: only the order of the predicted changes means "
    "something, not their size."
)
_MIN_RANKED = 3
"""Lambdas from which a rank agreement is worth stating: two agree by chance half of the time."""


def recommend(comparison: Comparison) -> dict[str, Any] | None:
    """Returns the run at the knee with its gain and cost against the baseline.

    None where the baseline has no accuracy, or no other run's log-likelihood can be compared: there is no knee then.

    `recommended` is the baseline's own label where no other run gains; `candidates` are those within its interval.
    """
    table: dict[str, dict[Hashable, Any]] = {str(run["label"]): run for run in comparison.runs.to_dict("records")}
    base = table[comparison.baseline]
    others = comparison.differences
    is_known = [each["chosen_logps"] is not None for each in others.values()]
    if math.isnan(base["reward_accuracy"]) or (is_known and not any(is_known)):
        return None
    affordable = [label for label, each in others.items() if _is_affordable(each)]
    gaining = [label for label in affordable if _is_gaining(others[label]["chosen_logps"])]
    own = {"value": base["reward_accuracy"], "ci_low": base["reward_accuracy_low"]}
    best = max(gaining, key=lambda label: _gain(comparison, label)["mean"], default=comparison.baseline)
    is_baseline = best == comparison.baseline
    return {
        "recommended": best,
        "lambda": None if math.isnan(table[best]["lambda"]) else table[best]["lambda"],
        "path": str(table[best]["path"]),
        "accuracy_floor": _floor(own if is_baseline else others[best]["accuracies"]["baseline"]),
        "candidates": affordable,
        "gain": None if is_baseline else _gain(comparison, best),
        "cost": None if is_baseline else others[best]["reward_accuracy"]["difference"],
        "statement": _state_best(comparison, best) if not is_baseline else _state_none(comparison, affordable),
    }


def _is_affordable(difference: Mapping[str, Any]) -> bool:
    """Whether the accuracy lies within the baseline's own interval, both on the pairs that the two share."""
    accuracies = difference["accuracies"]
    return accuracies is not None and accuracies["model"]["value"] >= _floor(accuracies["baseline"])


def _floor(accuracy: Mapping[str, float]) -> float:
    """The lower end of the baseline's accuracy; the accuracy itself where that is not known."""
    return float(accuracy["value"] if math.isnan(accuracy["ci_low"]) else accuracy["ci_low"])


def _is_gaining(chosen: Mapping[str, Any] | None) -> bool:
    return chosen is not None and is_shown(chosen) and chosen["difference"]["mean"] > 0


def _gain(comparison: Comparison, label: str) -> dict[str, float]:
    """How much higher the chosen log-likelihood is than the baseline's; empty where it is not known."""
    return (comparison.differences[label]["chosen_logps"] or {"difference": {}})["difference"]


def _state_none(comparison: Comparison, affordable: Sequence[str]) -> str:
    base, others = comparison.baseline, comparison.differences
    if not others:
        return f"Only {base} here: there is nothing to choose from."
    if affordable:
        return f"Stay with {base}: no run that keeps its accuracy is shown to hold the chosen log-likelihood higher."
    known = [each["accuracies"]["baseline"] for each in others.values() if each["accuracies"]]
    if not known:
        return f"Stay with {base}: no other run's reward accuracy is known."
    floors = sorted({round(100 * _floor(accuracy), 1) for accuracy in known})
    ends = " or ".join(f"{floor:.1f} %" for floor in floors)
    return f"Stay with {base}: every other run's reward accuracy lies below {ends}, the lower end of its interval."


def _state_best(comparison: Comparison, best: str) -> str:
    base, difference = comparison.baseline, comparison.differences[best]
    gain, cost = _gain(comparison, best), difference["reward_accuracy"]["difference"]
    n_own = next(len(run.frame) for run in comparison.scored if run.label == base)
    shared = f" on the {difference['n']} pairs they share" if difference["n"] < n_own else ""
    return (
        f"Take {best}: of the runs with a reward accuracy within {base}'s 95 % interval{shared} (at least "
        f"{100 * _floor(difference['accuracies']['baseline']):.1f} %) it keeps the chosen log-likelihood highest, "
        f"{format_interval(gain)} nats above {base}; accuracy changes by {format_interval(cost, '+z.1f', 100)} points."
        f"{say_if_few(difference['n'], difference['n_prompts'])}"
    )


def check_theory(runs: pd.DataFrame, theory: Mapping[str, Any]) -> dict[str, Any] | None:
    """Lays what `theory-gap` predicted beside what the runs measured, a row per constant lambda, DPO among them.

    With `advice` in the summary the prediction is the forecast, nats of change per nat of mean margin that DPO gains,
    times the margin DPO did gain. Without it, it is (1 - f) mean u of the theorem as printed: only its order means
    something. Rank agreement is Kendall's tau, 1 for the same order and -1 for the reverse.

    Returns None with fewer than two such runs.

    Args:
        runs: those that it is a forecast of (`theory_source.select_forecast`).
        theory: the summary of the theory table, with its `path`.
    """
    advice = _read_advice(theory)
    constant = runs[runs["lambda"].notna() & runs["chosen_displacement"].notna()].sort_values("lambda", ascending=False)
    dpo = constant[constant["lambda"] == 1]
    has_scale = bool((dpo["reward_margins_low"] > 0).any())
    scale = float((dpo["reward_margins"] / dpo["beta"]).mean()) if len(dpo) else math.nan
    rows = []
    for run in constant.to_dict("records"):
        predicted = _predict(theory, advice, float(run["lambda"]), scale)
        if predicted is not None:
            rows.append(
                {
                    "label": run["label"],
                    "lambda": float(run["lambda"]),
                    **predicted,
                    "measured_chosen": float(run["chosen_displacement"]),
                    "measured_accuracy": float(run["reward_accuracy"]),
                }
            )
    if len({row["lambda"] for row in rows}) < 2:
        return None
    agreement = {
        name: _rank_agreement([row[f"predicted_{name}"] for row in rows], [row[f"measured_{name}"] for row in rows])
        for name in ("chosen", "accuracy")
    }
    source = ADVICE if advice is not None else PAPER
    return {
        "source": source,
        "optimizer": (advice or {}).get("optimizer"),
        "path": theory.get("path"),
        "rows": rows,
        "rank_agreement": agreement,
        "recommended_lambda": (advice or {}).get("recommended_lambda"),
        "reason": (advice or {}).get("reason"),
        "statement": _state_theory(source, agreement, len(rows), advice)
        + ("" if advice is None or has_scale else f" {_NO_SCALE}"),
    }


def _read_advice(theory: Mapping[str, Any]) -> dict[str, Any] | None:
    """The advice that `theory-gap` itself showed: `summary["advice"][summary["advice_from"]]`; None without a grid."""
    advice = (theory.get("advice") or {}).get(theory.get("advice_from"))
    return advice if isinstance(advice, dict) and "1" in (advice.get("grid") or {}) else None


def _predict(
    theory: Mapping[str, Any], advice: Mapping[str, Any] | None, lambda_: float, scale: float
) -> dict[str, Any] | None:
    if advice is not None:
        cell = advice["grid"].get(f"{lambda_:g}")
        if cell is None or math.isnan(scale):
            return None
        return {
            "predicted_chosen": cell["chosen_change"]["mean"] * scale,
            "predicted_accuracy": cell["accuracy"]["value"],
        }
    u, v = (theory.get(name) or {} for name in ("u", "v"))
    if u.get("mean") is None or v.get("mean") is None:
        return None
    return {"predicted_chosen": (1 - lambda_) * u["mean"], "predicted_accuracy": (1 - lambda_) * v["mean"]}


def _rank_agreement(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float | None]:
    """Kendall's tau-b with its exact p-value; None where all of one side are the same."""
    result = kendalltau(predicted, measured)
    return {
        "tau": float(result.statistic) if np.isfinite(result.statistic) else None,
        "p_value": float(result.pvalue) if np.isfinite(result.pvalue) else None,
    }


def _state_theory(
    source: str, agreement: Mapping[str, Mapping[str, float | None]], n: int, advice: Mapping[str, Any] | None
) -> str:
    def say(name: str) -> str:
        tau = agreement[name]["tau"]
        return "not defined" if tau is None else f"{tau:+.2f}"

    best = (advice or {}).get("recommended_lambda")
    named = f" It recommended lambda {best:g} before any training." if best is not None else ""
    if n < _MIN_RANKED:
        return f"{n} lambdas are too few to say whether theory orders them right.{named}"
    return (
        f"{source} orders {n} runs by chosen log-likelihood with a rank agreement of {say('chosen')}, by reward "
        f"accuracy with {say('accuracy')} (Kendall's tau: 1 is the order measured, -1 its reverse).{named}"
    )
