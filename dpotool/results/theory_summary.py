"""What a theory table says, as one JSON object: u and v, entanglement, admissible band, the paper's gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from dpotool.results.statistics import N_RESAMPLES, bootstrap_interval, bootstrap_means, bootstrap_shares

PAPER_SHARES = {"u_positive_share": 0.714, "v_negative_share": 0.817}
PAPER_SETTING = "SFT Llama-3-8B, UltraFeedback test set, gamma = 1 (arXiv:2502.07599)"
_NEEDED = ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm", "u", "v")
NOT_FINITE = "gradient product is not finite"


def split_usable(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns the rows of a theory table whose products are numbers, and how many are not."""
    is_finite = np.isfinite(frame[list(_NEEDED)].to_numpy(dtype=np.float64)).all(axis=1)
    n_left_out = int(np.sum(~is_finite))
    return frame[is_finite], ({NOT_FINITE: n_left_out} if n_left_out else {})


def summarize_theory(
    frame: pd.DataFrame,
    lambdas: Sequence[float] = (),
    *,
    gamma: float = 1.0,
    n_excluded: Mapping[str, int] | None = None,
    counts: Mapping[str, Any] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the summary of a theory table (columns of THEORY_SCHEMA), every interval over pairs.

    Args:
        lambdas: shift factors f to give the paper's gaps and the share of pairs inside the band for.
        gamma: slope of the smoothed target w2, as in the table's u.
        n_excluded: reason -> pairs left out before the table was made; those that are not finite are added.
        counts: PairCounts as a dict, passed through.
    """
    usable, not_finite = split_usable(frame)
    options = {"n_resamples": n_resamples, "seed": seed}
    u, v = (usable[name].to_numpy(dtype=np.float64) for name in ("u", "v"))
    means = bootstrap_means({"u": u, "v": v, **_compute_paper_gaps(usable, lambdas, gamma)}, **options)
    shares = bootstrap_shares({"u_positive_share": u > 0, "v_negative_share": v < 0}, **options)
    return {
        "n": len(usable),
        "n_excluded": dict(n_excluded or {}) | not_finite,
        "counts": dict(counts) if counts is not None else None,
        "gamma": gamma,
        "u": means["u"].to_dict("mean"),
        "v": means["v"].to_dict("mean"),
        "u_median": bootstrap_interval(u, "median", **options).to_dict(),
        "v_median": bootstrap_interval(v, "median", **options).to_dict(),
        **{name: share.to_dict() | {"paper": PAPER_SHARES[name]} for name, share in shares.items()},
        "paper_setting": PAPER_SETTING,
        "entanglement": _count_cases(usable["entanglement"], options),
        "band": _describe_band(usable, lambdas, options),
        "paper_gaps": {
            _key(f): {gap: means[f"{gap} {_key(f)}"].to_dict("mean") for gap in ("g1", "g2")} for f in lambdas
        },
    }


def _count_cases(cases: pd.Series, options: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Entanglement case -> number of pairs and share of all with its interval, the most frequent first."""
    counts = cases.value_counts()
    shares = bootstrap_shares({case: cases == case for case in counts.index}, **options)
    return {case: {"n": int(counts[case]), **share.to_dict()} for case, share in shares.items()}


def _describe_band(frame: pd.DataFrame, lambdas: Sequence[float], options: Mapping[str, Any]) -> dict[str, Any]:
    """The band of f in which a self-step raises the chosen and lowers the rejected likelihood.

    `bounded_share` has <W, L> > 0, where the band ends somewhere; the medians of its ends are over those pairs, that of
    the log-centre |W| / |L| over all pairs with |L| > 0. `admissible_share` is, for each f (and 1, DPO), the share of
    pairs whose band holds it.
    """
    low, high = (frame[name].to_numpy(dtype=np.float64) for name in ("band_low", "band_high"))
    is_bounded = np.isfinite(high)
    chosen, rejected = (frame[f"{side}_grad_sq_norm"].to_numpy(dtype=np.float64) for side in ("chosen", "rejected"))
    centre = np.sqrt(chosen[rejected > 0] / rejected[rejected > 0])
    shares = {_key(f): (low <= f) & (f <= high) for f in (*lambdas, 1.0)}
    return {
        "bounded_share": bootstrap_shares({"": is_bounded}, **options)[""].to_dict(),
        "low_median": bootstrap_interval(low[is_bounded], "median", **options).to_dict(),
        "high_median": bootstrap_interval(high[is_bounded], "median", **options).to_dict(),
        "centre_median": bootstrap_interval(centre, "median", **options).to_dict(),
        "admissible_share": {f: share.to_dict() for f, share in bootstrap_shares(shares, **options).items()},
    }


def _compute_paper_gaps(frame: pd.DataFrame, lambdas: Sequence[float], gamma: float) -> dict[str, np.ndarray]:
    """Per pair and f, the theorem as printed: g1 = (1 - f) u and g2 = (1 - f) v, with eta and eta1 set to 1.

    u is taken at this f, `gamma s(f gamma b - gamma a) <W, L>`; where the policy is the reference (a = b = 0) it is the
    table's u for every f. Not the exact first-order gap, nor a measured one.
    """
    inner, a, b, v = (
        frame[name].to_numpy(dtype=np.float64)
        for name in ("grad_inner_product", "chosen_logratios", "rejected_logratios", "v")
    )
    gaps = {}
    for f in lambdas:
        gaps[f"g1 {_key(f)}"] = (1 - f) * gamma * expit(gamma * (f * b - a)) * inner
        gaps[f"g2 {_key(f)}"] = (1 - f) * v
    return gaps


def _key(f: float) -> str:
    """A shift factor as a JSON key: 0.9, 1, 1.05."""
    return f"{f:g}"
