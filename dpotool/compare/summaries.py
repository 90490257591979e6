"""What a score table says, as one JSON object: means and shares over pairs with 95 % bootstrap intervals over pairs.

Accuracy and margins are unshifted whatever lambda the model was trained with; a margin of exactly zero counts
as wrong. Pairs that were left out are counted by reason; none of them enters a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpotool.compare.scored_run import ScoredRun
from dpotool.stats.bootstrap import N_RESAMPLES, bootstrap_interval, bootstrap_ratios, bootstrap_shares

MEANS = (
    "chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps",
    "chosen_rewards", "rejected_rewards", "reward_margins", "chosen_displacement", "rejected_displacement",
)  # fmt: skip
MEDIANS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps", "reward_margins")
SHARES = ("reward_accuracy", "chosen_displaced_share", "rejected_displaced_share")
BEYOND_NOISE = "reward_accuracy_beyond_noise"
PERPLEXITIES = {
    "chosen_perplexity": ("chosen_logps", "chosen_tokens"),
    "rejected_perplexity": ("rejected_logps", "rejected_tokens"),
    "ref_chosen_perplexity": ("ref_chosen_logps", "chosen_tokens"),
    "ref_rejected_perplexity": ("ref_rejected_logps", "rejected_tokens"),
}
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
    columns, clusters = dict(run.columns), run.clusters
    ratios = {name: (columns[name], np.ones(run.n)) for name in MEANS if name in columns}
    ratios |= {
        name: (columns[logps], columns[tokens])
        for name, (logps, tokens) in PERPLEXITIES.items()
        if logps in columns and tokens in columns
    }
    intervals = bootstrap_ratios(ratios, clusters=clusters, **options)
    n_exact_ties = int(np.sum(columns["reward_margins"] == 0)) if "reward_margins" in columns else None
    n_ties = _set_beyond_noise(columns, run.noise_floor)
    names = [name for name in (*SHARES, BEYOND_NOISE) if name in columns]
    shares = bootstrap_shares({name: columns[name] for name in names}, clusters=clusters, **options)
    summary: dict[str, Any] = {
        "n": run.n,
        "n_prompts": run.n_prompts,
        "n_excluded": run.excluded,
        "counts": dict(counts) if counts is not None else None,
        "beta": run.beta,
        "ties": n_exact_ties if n_ties is None else n_ties,
        "n_exact_ties": n_exact_ties,
    }
    summary |= {name: intervals[name].to_dict("mean") if name in intervals else None for name in MEANS}
    for name in MEDIANS:
        median = bootstrap_interval(columns[name], "median", **options).to_dict() if name in columns else None
        summary[f"{name}_median"] = median
    summary |= {name: shares[name].to_dict() if name in shares else None for name in (*SHARES, BEYOND_NOISE)}
    summary["noise_floor"] = dict(run.noise) if run.noise is not None else None
    for name in PERPLEXITIES:
        summary[name] = intervals[name].to_perplexity().to_dict() if name in intervals else None
    summary["margin_identity"] = check_margin_identity(run)
    return summary


def get_summary(run: ScoredRun) -> Mapping[str, Any]:
    """Returns the summary that was written beside a run's table; made from the table where there is none."""
    return summarize_scores(run) if run.recorded is None else run.recorded


def _set_beyond_noise(columns: dict[str, np.ndarray], floor: float | None) -> int | None:
    """Adds which margins are larger than noise; returns how many are no larger in size, or None where nobody knows."""
    if floor is None or "reward_margins" not in columns:
        return None
    columns[BEYOND_NOISE] = columns["reward_margins"] > floor
    return int(np.sum(np.abs(columns["reward_margins"]) <= floor))


def check_margin_identity(run: ScoredRun) -> dict[str, Any] | None:
    """Whether mean margin = beta * (mean change of chosen - mean change of rejected), as it must.

    It fails when rewards were made with another beta or another reference than the table says; three of the methods
    in the paper's own Table 2 fail it. None without a reference or beta.
    """
    columns, beta = run.columns, run.beta
    if not run.is_referenced or beta is None:
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
