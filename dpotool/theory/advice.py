"""Which lambda to train with, from what one step on all pairs would do to each of them, known before any training.

The forecast is of first order. It does not say how far training will go, but which way, and how much of one thing goes
with how much of another. So changes are given per nat that DPO gains in mean margin ("nats per nat"), which needs
neither learning rate nor number of steps. Predictions are for pairs the step was not taken on: a pair's own part is
left out (SGD), or the step is taken from the other half of the pairs (AdamW).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpotool.stats.bootstrap import N_RESAMPLES, bootstrap_means, bootstrap_ratios, bootstrap_shares
from dpotool.stats.intervals import format_interval
from dpotool.theory.summary import shift_key
from dpotool.wording import count

Values = NDArray[np.float64]
Changes = tuple[Values, Values]
"""Of log pi(chosen) and of log pi(rejected), per pair."""

GRID = tuple(round(0.5 + 0.05 * step, 2) for step in range(11))
"""Shift factors that are tried besides those asked for; the range of the paper (arXiv:2502.07599, section 4)."""
ALLOWED_LOSS = 0.03
"""A lambda is recommended only where a predicted loss of this share of pairs ranked right is ruled out."""
MARGIN_FLOOR = 0.5
"""A lambda is recommended only where its predicted gain in mean margin is shown to be this share of DPO's."""
DOT_COLUMNS = (
    "chosen_dot_mean_chosen",
    "rejected_dot_mean_chosen",
    "chosen_dot_mean_rejected",
    "rejected_dot_mean_rejected",
)


def forecast_sgd(frame: pd.DataFrame, shifts: tuple[float, ...]) -> dict[float, Changes]:
    """Predicts every pair's changes for a gradient step on all *other* pairs, at the reference; up to a common factor.

    The step on the others moves along C (mean W - f mean L) without the pair itself, so log pi(chosen) changes by
    <W_j, mean W> - f <W_j, mean L>, both means over the others, and log pi(rejected) likewise.

    Args:
        frame: theory table with its `DOT_COLUMNS` filled.
    """
    ww, lw, wl, ll = (frame[name].to_numpy(dtype=np.float64) for name in DOT_COLUMNS)
    n = len(frame)
    inner, chosen, rejected = (
        frame[name].to_numpy(dtype=np.float64)
        for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm")
    )
    # mean over the others = (n mean - own) / (n - 1)
    ww, lw = ((n * mean - own) / (n - 1) for mean, own in ((ww, chosen), (lw, inner)))
    wl, ll = ((n * mean - own) / (n - 1) for mean, own in ((wl, inner), (ll, rejected)))
    return {f: (ww - f * wl, lw - f * ll) for f in shifts}


def advise(
    forecast: Mapping[float, Changes],
    bands: tuple[Values, Values],
    *,
    optimizer: str,
    clusters: NDArray[np.str_] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the forecast for each lambda with intervals, the lambda it speaks for, and why.

    Intervals are over the pairs that the step is tried on, with the step held as it is: they say how well these pairs
    tell what this step does, and are too narrow for what a step on other pairs would do.

    Where the mean margin that DPO gains cannot be told from none, there is nothing to compare with: `grid` is empty,
    `recommended_lambda` None, and `reason` says so.

    Args:
        forecast: f -> predicted changes; must hold f = 1, DPO.
        bands: low and high end of each pair's admissible band.
        optimizer: whose step was predicted.
        clusters: which prompt each pair belongs to; those of one prompt are resampled together.
    """
    options: dict[str, Any] = {"clusters": clusters, "n_resamples": n_resamples, "seed": seed}
    gain = _margin(forecast[1.0])
    about = {"optimizer": optimizer, "n": len(gain), "intervals": "over pairs, the step held fixed"}
    scaled = bootstrap_means({"": gain / max(np.abs(gain).max(initial=0.0), 1e-300)}, **options)[""]
    if not scaled.ci_low > 0:
        reason = (
            f"On these {count(len(gain), 'pair')} DPO's first step raises the margin of other pairs by an amount that "
            "cannot be distinguished from 0, so the forecast has no scale. More pairs would give it one."
        )
        nothing = {"recommended_lambda": None, "lowest_affordable_lambda": None}
        return {**about, "grid": {}, **nothing, "basis": "no_scale", "reason": reason}
    grid = {shift_key(f): _describe(changes, gain, options) for f, changes in sorted(forecast.items())}
    low, high = bands
    shares = bootstrap_shares({shift_key(f): (low <= f) & (f <= high) for f in forecast}, **options)
    for key, share in shares.items():
        grid[key]["self_step_admissible_share"] = share.to_dict()
    return {**about, "grid": grid, **_recommend(grid)}


def _describe(changes: Changes, gain: Values, options: Mapping[str, Any]) -> dict[str, Any]:
    chosen, rejected = changes
    margin = _margin(changes)
    per_gain = bootstrap_ratios(
        {"chosen_change": (chosen, gain), "rejected_change": (rejected, gain), "margin_change": (margin, gain)},
        **options,
    )
    shares = bootstrap_shares(
        {
            "accuracy": margin > 0,
            "chosen_up_share": chosen > 0,
            "chosen_up_rejected_down_share": (chosen > 0) & (rejected < 0),
        },
        **options,
    )
    cost = bootstrap_means({"": (margin > 0).astype(float) - (gain > 0)}, **options)[""]
    return {
        **{name: value.to_dict("mean") for name, value in per_gain.items()},
        **{name: value.to_dict() for name, value in shares.items()},
        "accuracy_difference": cost.to_dict("mean"),
    }


def _recommend(grid: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Picks the largest lambda that keeps the chosen from falling, unless it may cost too much.

    A lambda is affordable if its predicted accuracy is shown to be less than `ALLOWED_LOSS` below DPO's, and its gain
    in margin to be at least `MARGIN_FLOOR` of DPO's.
    """
    lambdas = sorted((float(key) for key in grid if float(key) <= 1), reverse=True)
    affordable = [lambdas[0]]
    for f in lambdas[1:]:
        if not _is_affordable(grid[shift_key(f)]):
            break
        affordable.append(f)
    keeping = [f for f in lambdas if grid[shift_key(f)]["chosen_change"]["mean"] >= 0]
    lowest = affordable[-1]
    if keeping and keeping[0] >= lowest:
        lambda_, basis = keeping[0], "dpo" if keeping[0] == 1 else "keeps_chosen"
    else:
        lambda_, basis = lowest, "limits_cost"
    reason = _explain(grid, lambda_, basis, keeping, lowest)
    return {"recommended_lambda": lambda_, "lowest_affordable_lambda": lowest, "basis": basis, "reason": reason}


def _is_affordable(cell: Mapping[str, Any]) -> bool:
    """Non-inferiority: few pairs make the intervals wide, so they admit less and never more."""
    is_no_worse = cell["accuracy_difference"]["ci_low"] > -ALLOWED_LOSS
    return bool(is_no_worse and cell["margin_change"]["ci_low"] >= MARGIN_FLOOR)


def _explain(
    grid: Mapping[str, Mapping[str, Any]], lambda_: float, basis: str, keeping: list[float], lowest: float
) -> str:
    dpo, cell = grid[shift_key(1.0)], grid[shift_key(lambda_)]
    fall = format_interval(dpo["chosen_change"])
    if basis == "dpo":
        return (
            f"DPO itself (lambda 1) is predicted to move log pi(chosen) by {fall} nats for each nat of margin it "
            "gains, so to first order there is no displacement to undo. Training can still displace through curvature, "
            "which no first step shows. Check log pi(chosen) in a short DPO run, or run `dpotool predict` on it. "
            f"If it falls there, {_describe_lowest(lowest)}."
        )
    effect = (
        f"DPO is predicted to move log pi(chosen) by {fall} nats for each nat of margin it gains; "
        f"lambda {lambda_:g} makes that {format_interval(cell['chosen_change'])}, with "
        f"{100 * cell['margin_change']['mean']:.0f} % of DPO's margin and a reward accuracy of "
        f"{100 * cell['accuracy']['value']:.1f} % against {100 * dpo['accuracy']['value']:.1f} %."
    )
    if basis == "keeps_chosen":
        return f"{effect} It is the largest lambda at which the chosen answers do not fall, and its cost is affordable."
    cure = (
        f"Only at lambda {keeping[0]:g} would the chosen answers stop falling, and that costs more"
        if keeping
        else "No lambda of the grid keeps the chosen answers from falling"
    )
    return f"{effect} {cure}; {_describe_lowest(lambda_)}."


def _describe_lowest(lowest: float) -> str:
    if lowest == 1:
        return (
            f"no smaller lambda of the grid is shown to lose less than {100 * ALLOWED_LOSS:g} points of "
            "accuracy and to "
            f"keep {100 * MARGIN_FLOOR:.0f} % of the margin"
        )
    return (
        f"{lowest:g} is the smallest lambda that is shown to lose less than {100 * ALLOWED_LOSS:g} points of accuracy "
        f"and to keep {100 * MARGIN_FLOOR:.0f} % of the margin"
    )


def _margin(changes: Changes) -> Values:
    return changes[0] - changes[1]


def compute_pushes(frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Returns what each pair's part in a DPO step does to the chosen answers of the others, and of the pair itself.

    A DPO step at the reference moves along C mean_i (W_i - L_i), so pair i adds C/N (<W_i, mean W> - <L_i, mean W>) to
    the change of the mean chosen log-likelihood, the mean being over the other pairs. The first column (`driver_score`)
    is that, in nats per nat of mean margin that the whole step gains: the scores of all pairs add up to DPO's
    `chosen_change` in the advice. The second is what the pair does to its own chosen answer, C/N (|W_i|^2 - <W_i,
    L_i>), on the same scale. None where a step gains no margin, by which nothing can be divided.

    Args:
        frame: theory table with its `DOT_COLUMNS` filled.
    """
    ww, lw, wl, ll = (frame[name].to_numpy(dtype=np.float64) for name in DOT_COLUMNS)
    inner, chosen, rejected = (
        frame[name].to_numpy(dtype=np.float64)
        for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm")
    )
    n = len(frame)
    if n < 2:
        return None
    others = (n * (ww - lw) - (chosen - inner)) / (n - 1)
    gain = ((n * (ww - wl - lw + ll) - (chosen - 2 * inner + rejected)) / (n - 1)).sum()
    return (others / gain, (chosen - inner) / gain) if gain > 0 else None


def rank_drivers(frame: pd.DataFrame, n_top: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the `n_top` pairs with the most negative push, each with its place in the table.

    Args:
        frame: theory table with its `DOT_COLUMNS` filled.
    """
    pushes = compute_pushes(frame)
    if pushes is None:
        return []
    push, own_push = pushes
    order = np.argsort(push, kind="stable")[:n_top]
    return [
        (int(place), {"pair_id": int(frame["pair_id"].iloc[place]), "push": push[place], "own_push": own_push[place]})
        for place in order
        if push[place] < 0
    ]
