"""What a score table says, as one JSON object: means and shares over pairs with 95 % bootstrap intervals over pairs.

Accuracy and margins are unshifted whatever lambda the model was trained with; a margin of exactly zero counts
as wrong. Pairs that were left out are counted by reason; none of them enters a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpotool.stats.bootstrap import (
    N_RESAMPLES,
    bootstrap_interval,
    bootstrap_ratios,
    bootstrap_shares,
    count_prompts,
    read_clusters,
)

NOT_FINITE = "log-likelihood is not finite"
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
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


def split_scored(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns the rows of a score table that numbers can be made of, and how many others there are by reason.

    A reference that is null for every pair is no reason: there was none. A reference that is null for some is one. In
    a table of rewards alone, as imported ones can be, the rewards must be numbers.
    """
    is_ok = frame["status"] == "ok"
    needed = ["chosen_logps", "rejected_logps"]
    if _has_only_rewards(frame[is_ok]):
        needed = ["chosen_rewards", "rejected_rewards"]
    needed += [name for name in REFERENCE_COLUMNS if frame.loc[is_ok, name].notna().any()]
    is_finite = pd.Series(np.isfinite(frame[needed].to_numpy(dtype=np.float64)).all(axis=1), index=frame.index)
    reasons = frame.loc[~is_ok, "status"].value_counts().to_dict()
    n_not_finite = int((is_ok & ~is_finite).sum())
    if n_not_finite:
        reasons[NOT_FINITE] = n_not_finite
    return frame[is_ok & is_finite], {str(reason): int(count) for reason, count in reasons.items()}


def _has_only_rewards(rows: pd.DataFrame) -> bool:
    """Whether a table was made elsewhere and holds rewards without the log-likelihoods behind them."""
    return bool(len(rows)) and bool(rows["chosen_logps"].isna().all() and rows["chosen_rewards"].notna().any())


def has_reference(scored: pd.DataFrame) -> bool:
    """Whether a score table (its scored rows) holds reference values."""
    return bool(len(scored)) and bool(scored[list(REFERENCE_COLUMNS)].notna().all(axis=None))


def summarize_scores(
    frame: pd.DataFrame,
    beta: float | None,
    counts: Mapping[str, Any] | None = None,
    *,
    noise: Mapping[str, Any] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the summary of a score table (columns of SCORE_SCHEMA).

    `{"mean", "ci_low", "ci_high"}` for means over pairs, `{"value", ...}` for medians (`*_median`), shares and
    token-weighted perplexities exp(-sum logps / sum tokens); nats throughout. What needs a reference is None without
    one. `*_displacement` is policy minus reference; `*_displaced_share` the share of pairs for which that is below 0.

    Args:
        beta: scale of the rewards in the table; used to check the table against itself (`margin_identity`).
        counts: PairCounts as a dict, passed through.
        noise: the noise floor (`compare.noise`), passed through as `noise_floor`. Margins no larger than its largest
            are `ties`, and count as wrong in `reward_accuracy_beyond_noise`, which is None without one; then only
            margins of exactly 0 (`n_exact_ties`) are ties.
    """
    scored, excluded = split_scored(frame)
    is_referenced = has_reference(scored)
    options = {"n_resamples": n_resamples, "seed": seed}
    columns = _columns(scored, is_referenced)
    ratios = {name: (columns[name], np.ones(len(scored))) for name in MEANS if name in columns}
    ratios |= {
        name: (columns[logps], columns[tokens])
        for name, (logps, tokens) in PERPLEXITIES.items()
        if logps in columns and tokens in columns
    }
    clusters = read_clusters(scored)
    intervals = bootstrap_ratios(ratios, clusters=clusters, **options)
    n_exact_ties = int(np.sum(columns["reward_margins"] == 0)) if "reward_margins" in columns else None
    n_ties = _set_beyond_noise(columns, noise)
    names = [name for name in (*SHARES, BEYOND_NOISE) if name in columns]
    shares = bootstrap_shares({name: columns[name] for name in names}, clusters=clusters, **options)
    summary: dict[str, Any] = {
        "n": len(scored),
        "n_prompts": count_prompts(scored),
        "n_excluded": excluded,
        "counts": dict(counts) if counts is not None else None,
        "beta": beta,
        "ties": n_exact_ties if n_ties is None else n_ties,
        "n_exact_ties": n_exact_ties,
    }
    summary |= {name: intervals[name].to_dict("mean") if name in intervals else None for name in MEANS}
    for name in MEDIANS:
        median = bootstrap_interval(columns[name], "median", **options).to_dict() if name in columns else None
        summary[f"{name}_median"] = median
    summary |= {name: shares[name].to_dict() if name in shares else None for name in (*SHARES, BEYOND_NOISE)}
    summary["noise_floor"] = dict(noise) if noise is not None else None
    for name in PERPLEXITIES:
        summary[name] = intervals[name].to_perplexity().to_dict() if name in intervals else None
    summary["margin_identity"] = check_margin_identity(columns, beta) if is_referenced and beta is not None else None
    return summary


def _set_beyond_noise(columns: dict[str, np.ndarray], noise: Mapping[str, Any] | None) -> int | None:
    """Adds which margins are larger than noise; returns how many are no larger in size, or None where nobody knows."""
    floor = (noise or {}).get("reward_margins")
    if floor is None or "reward_margins" not in columns:
        return None
    columns[BEYOND_NOISE] = columns["reward_margins"] > floor["largest"]
    return int(np.sum(np.abs(columns["reward_margins"]) <= floor["largest"]))


def check_margin_identity(columns: Mapping[str, np.ndarray], beta: float) -> dict[str, Any]:
    """Whether mean margin = beta * (mean change of chosen - mean change of rejected), as it must.

    It fails when rewards were made with another beta or another reference than the table says; three of the methods
    in the paper's own Table 2 fail it.
    """
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


def _columns(scored: pd.DataFrame, is_referenced: bool) -> dict[str, np.ndarray]:
    """What the summary is made of, one float64 per scored pair; what needs a reference only if there is one."""
    names = ["chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens"]
    if is_referenced or _has_only_rewards(scored):
        names += [*REFERENCE_COLUMNS, "chosen_rewards", "rejected_rewards", "reward_margins"]
    columns = {name: scored[name].to_numpy(dtype=np.float64) for name in names}
    # tables made elsewhere may lack lengths, or log-likelihoods
    columns = {name: values for name, values in columns.items() if not len(values) or not np.isnan(values).all()}
    if is_referenced:
        for side in ("chosen", "rejected"):
            columns[f"{side}_displacement"] = columns[f"{side}_logps"] - columns[f"ref_{side}_logps"]
            columns[f"{side}_displaced_share"] = columns[f"{side}_displacement"] < 0
    if "reward_margins" in columns:
        columns["reward_accuracy"] = columns["reward_margins"] > 0
    return columns
