"""What a score table says, as one JSON object: means and shares over pairs with 95 % bootstrap intervals over pairs.

Accuracy and margins are unshifted whatever lambda the model was trained with; a margin of exactly zero counts
as wrong. Pairs that were left out are counted by reason; none of them enters a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpotool.compare.scored_run import BEYOND_NOISE, ScoredRun
from dpotool.stats.bootstrap import N_RESAMPLES, bootstrap_interval, bootstrap_ratios, bootstrap_shares
from dpotool.stats.intervals import Interval

MEANS = (
    "chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps",
    "chosen_rewards", "rejected_rewards", "reward_margins", "chosen_displacement", "rejected_displacement",
)  # fmt: skip
MEDIANS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps", "reward_margins")
SHARES = ("reward_accuracy", "chosen_displaced_share", "rejected_displaced_share")
PERPLEXITIES = {
    "chosen_perplexity": ("chosen_logps", "chosen_tokens"),
    "rejected_perplexity": ("rejected_logps", "rejected_tokens"),
    "ref_chosen_perplexity": ("ref_chosen_logps", "chosen_tokens"),
    "ref_rejected_perplexity": ("ref_rejected_logps", "rejected_tokens"),
}
CHANGE_GAP, KEPT = "rejected_minus_chosen_change", "chosen_probability_kept"
"""Mean change of the rejected minus that of the chosen answers, nats; and the geometric mean over chosen tokens of
pi / pi_ref. With MEANS and SHARES they are what a verdict rests on."""
_IDENTITY_TOLERANCE = 1e-9  # relative to the largest term; float64 sums of 60,000 pairs stay far inside it


def summarize_scores(
    run: ScoredRun,
    counts: Mapping[str, Any] | None = None,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the summary of a scored run, from its table alone.

    `{"mean", "ci_low", "ci_high"}` for means over pairs, `{"value", ...}` for medians (`*_median`), shares and
    token-weighted perplexities exp(-sum logps / sum tokens); nats throughout. What needs a reference is None without
    one. `*_displacement` is policy minus reference; `*_displaced_share` the share of pairs for which that is below 0.

    With a noise floor (`compare.noise`), margins no larger than its largest are `ties`, and count as wrong in
    `reward_accuracy_beyond_noise`, which is None without one; then only margins of exactly 0 (`n_exact_ties`) are
    ties. The table is checked against its beta (`margin_identity`).

    Args:
        counts: PairCounts as a dict, passed through.
    """
    options = {"n_resamples": n_resamples, "seed": seed}
    columns = run.columns
    found = measure(run, (*MEANS, *PERPLEXITIES, *SHARES, BEYOND_NOISE, CHANGE_GAP, KEPT), **options)
    summary: dict[str, Any] = {
        "n": run.n,
        "n_prompts": run.n_prompts,
        "n_excluded": run.excluded,
        "counts": dict(counts) if counts is not None else None,
        "beta": run.beta,
        **_count_ties(run),
    }
    summary |= {name: found[name].to_dict("mean") if name in found else None for name in MEANS}
    for name in MEDIANS:
        median = bootstrap_interval(columns[name], "median", **options).to_dict() if name in columns else None
        summary[f"{name}_median"] = median
    summary |= {name: found[name].to_dict() if name in found else None for name in (*SHARES, BEYOND_NOISE)}
    summary["noise_floor"] = dict(run.noise) if run.noise is not None else None
    summary |= {name: found[name].to_dict() if name in found else None for name in PERPLEXITIES}
    summary["margin_identity"] = check_margin_identity(run)
    return summary


def measure(
    run: ScoredRun, names: Iterable[str], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Returns statistics of a run over its pairs with their intervals; those whose columns are missing are left out.

    Each is bootstrapped once for a run, as the summary and the verdict use the same ones.

    Args:
        names: of MEANS, PERPLEXITIES, SHARES, BEYOND_NOISE, CHANGE_GAP and KEPT.
    """
    known = run.intervals.setdefault((n_resamples, seed), {})
    wanted = [name for name in names if name not in known]
    options: dict[str, Any] = {"clusters": run.clusters, "n_resamples": n_resamples, "seed": seed}
    ratios = {name: ratio for name in wanted if (ratio := _find_ratio(run, name)) is not None}
    for name, found in bootstrap_ratios(ratios, **options).items():
        known[name] = found.to_perplexity() if name in PERPLEXITIES else found.exponentiate() if name == KEPT else found
    shares = {name: run.columns[name] for name in wanted if name in (*SHARES, BEYOND_NOISE) and name in run.columns}
    known |= bootstrap_shares(shares, **options)
    return {name: known[name] for name in names if name in known}


def _find_ratio(run: ScoredRun, name: str) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """What is summed over pairs, and what that sum is divided by; None for no ratio, or one without its columns."""
    columns, ones = run.columns, np.ones(run.n)
    parts = {**PERPLEXITIES, KEPT: ("chosen_displacement", "chosen_tokens")}
    if name in parts:
        top, bottom = parts[name]
        return (columns[top], columns[bottom]) if top in columns and bottom in columns else None
    if name == CHANGE_GAP and "chosen_displacement" in columns and "rejected_displacement" in columns:
        return columns["rejected_displacement"] - columns["chosen_displacement"], ones
    return (columns[name], ones) if name in MEANS and name in columns else None


def get_summary(run: ScoredRun) -> Mapping[str, Any]:
    """Returns the summary that was written beside a run's table; made from the table where there is none."""
    return summarize_scores(run) if run.recorded is None else run.recorded


def _count_ties(run: ScoredRun) -> dict[str, int | None]:
    """Margins of exactly 0, and those no larger than noise where that is known; None without margins."""
    margins = run.columns.get("reward_margins")
    if margins is None:
        return {"ties": None, "n_exact_ties": None}
    n_exact = int(np.sum(margins == 0))
    floor = run.noise_floor
    return {"ties": n_exact if floor is None else int(np.sum(np.abs(margins) <= floor)), "n_exact_ties": n_exact}


def check_margin_identity(run: ScoredRun) -> dict[str, Any] | None:
    """Whether mean margin = beta * (mean change of chosen - mean change of rejected), as it must.

    It fails when rewards were made with another beta or another reference than the table says; three of the methods
    in the paper's own Table 2 fail it. None without a reference or beta.
    """
    columns, beta = run.columns, run.beta
    if beta is None or not {"reward_margins", "chosen_displacement", "rejected_displacement"} <= columns.keys():
        return None
    chosen, rejected = (float(np.mean(columns[f"{side}_displacement"])) for side in ("chosen", "rejected"))
    from_means = beta * (chosen - rejected)
    margin = float(np.mean(columns["reward_margins"]))
    scale = beta * max(float(np.mean(np.abs(columns[name]))) for name in MEANS[:4])
    difference = from_means - margin
    return {
        "from_means": from_means,
        "mean_margin": margin,
        "difference": difference,
        "holds": bool(abs(difference) <= _IDENTITY_TOLERANCE * max(scale, abs(margin))),
    }
