"""What a theory table says, as one JSON object: u and v, entanglement, admissible band, gaps of every kind.

`summarize_prediction` says the same of a prediction table: how much of the measured change the first order explains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpotool.stats.bootstrap import (
    bootstrap_interval,
    bootstrap_means,
    bootstrap_ratios,
    bootstrap_shares,
    read_clusters,
)
from dpotool.stats.correlation import Counts, centre_counted, correlate_ranks, correlations, over_pairs
from dpotool.theory.theorem import compute_band_center

GapColumns = Mapping[float, Mapping[str, "PairGaps"]]
"""f -> kind of gap ("paper", "self_step", "batch") -> its columns."""

PAPER_SHARES = {"u_positive_share": 0.714, "v_negative_share": 0.817}
PAPER_SETTING = "SFT Llama-3-8B, UltraFeedback test set, gamma = 1 (arXiv:2502.07599)"
_NEEDED = ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm", "u", "v")
NOT_FINITE = "gradient product is not finite"


Values = NDArray[np.float64]
Prompts = NDArray[np.str_]
QUANTITIES = ("chosen", "rejected", "margin")


def split_usable(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns the rows of a theory table whose products are numbers, and how many are not."""
    is_finite = np.isfinite(frame[list(_NEEDED)].to_numpy(dtype=np.float64)).all(axis=1)
    n_left_out = int(np.sum(~is_finite))
    return frame[is_finite], ({NOT_FINITE: n_left_out} if n_left_out else {})


@dataclass(frozen=True, slots=True)
class PairGaps:
    """One kind of gap at one shift factor: g1 of the chosen log-likelihood, g2 of the smoothed reward accuracy."""

    chosen: np.ndarray
    """One value per pair; their mean is g1."""
    accuracy: np.ndarray
    """Their mean is g2."""
    signs: tuple[np.ndarray, np.ndarray] | None = None
    """Values whose signs say what happens to each pair, where these are not the values above."""
    has_intervals: bool = True
    """False where the values are not independent enough for an interval of their mean."""


def summarize_theory(
    frame: pd.DataFrame,
    gaps: GapColumns | None = None,
    *,
    gamma: float = 1.0,
    n_excluded: Mapping[str, int] | None = None,
    counts: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the summary of a theory table (columns of THEORY_SCHEMA), every interval over pairs.

    Where prompts repeat, pairs of one prompt are resampled together, but for medians.

    Args:
        gaps: per shift factor, the kinds of gap to summarise, aligned with the frame.
        gamma: slope of the smoothed target w2, as in the table's u.
        n_excluded: reason -> pairs left out before the table was made; those that are not finite are added.
        counts: PairCounts as a dict, passed through.
    """
    usable, not_finite = split_usable(frame)
    gaps = gaps or {}
    medians: dict[str, Any] = {"seed": seed}
    options = medians | {"clusters": read_clusters(usable)}
    u, v = (usable[name].to_numpy(dtype=np.float64) for name in ("u", "v"))
    means = bootstrap_means({"u": u, "v": v}, **options)
    shares = bootstrap_shares({"u_positive_share": u > 0, "v_negative_share": v < 0}, **options)
    is_usable = frame.index.isin(usable.index)
    return {
        "n": len(usable),
        "n_excluded": dict(n_excluded or {}) | not_finite,
        "counts": dict(counts) if counts is not None else None,
        "gamma": gamma,
        "u": means["u"].to_dict("mean"),
        "v": means["v"].to_dict("mean"),
        "u_median": bootstrap_interval(u, "median", **medians).to_dict(),
        "v_median": bootstrap_interval(v, "median", **medians).to_dict(),
        **{name: share.to_dict() | {"paper": PAPER_SHARES[name]} for name, share in shares.items()},
        "paper_setting": PAPER_SETTING,
        "entanglement": _count_cases(usable["entanglement"], options),
        "band": _describe_band(usable, list(gaps), options, medians),
        "gaps": {
            shift_key(f): {kind: _describe_gaps(columns, is_usable, options) for kind, columns in kinds.items()}
            for f, kinds in gaps.items()
        },
        "sign_disagreements": {shift_key(f): _compare_signs(kinds, is_usable, options) for f, kinds in gaps.items()},
    }


def _describe_gaps(gaps: PairGaps, is_usable: np.ndarray, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    columns = {"g1": gaps.chosen[is_usable], "g2": gaps.accuracy[is_usable]}
    if not gaps.has_intervals:
        return {
            name: {"mean": float(values.mean()), "ci_low": None, "ci_high": None} for name, values in columns.items()
        }
    return {name: interval.to_dict("mean") for name, interval in bootstrap_means(columns, **options).items()}


def _compare_signs(
    kinds: Mapping[str, PairGaps], is_usable: np.ndarray, options: Mapping[str, Any]
) -> dict[str, dict[str, dict[str, float]]]:
    """Kind -> g1 and g2 -> share of pairs for which that kind's gap has another sign than the printed theorem's."""
    paper = _signs_of(kinds["paper"])
    compared = {}
    for kind, gaps in kinds.items():
        if kind == "paper" or (not gaps.has_intervals and gaps.signs is None):
            continue
        differ = {
            name: (np.sign(printed) != np.sign(exact))[is_usable]
            for name, printed, exact in zip(("g1", "g2"), paper, _signs_of(gaps), strict=True)
        }
        shares = bootstrap_shares(differ, **options)
        compared[kind] = {name: {"n": int(differ[name].sum()), **share.to_dict()} for name, share in shares.items()}
    return compared


def _signs_of(gaps: PairGaps) -> tuple[np.ndarray, np.ndarray]:
    return gaps.signs or (gaps.chosen, gaps.accuracy)


def _count_cases(cases: pd.Series, options: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Entanglement case -> number of pairs and share of all with its interval, the most frequent first."""
    counts = cases.value_counts()
    shares = bootstrap_shares({case: cases == case for case in counts.index}, **options)
    return {case: {"n": int(counts[case]), **share.to_dict()} for case, share in shares.items()}


def _describe_band(
    frame: pd.DataFrame, lambdas: Sequence[float], options: Mapping[str, Any], medians: Mapping[str, Any]
) -> dict[str, Any]:
    """The band of f in which a self-step raises the chosen and lowers the rejected likelihood.

    `bounded_share` has <W, L> > 0, where the band ends somewhere; the medians of its ends are over those pairs, that of
    the log-centre |W| / |L| over all pairs with |L| > 0. `admissible_share` is, for each f (and 1, DPO), the share of
    pairs whose band holds it.
    """
    low, high = (frame[name].to_numpy(dtype=np.float64) for name in ("band_low", "band_high"))
    is_bounded = np.isfinite(high)
    chosen, rejected = (frame[f"{side}_grad_sq_norm"].to_numpy(dtype=np.float64) for side in ("chosen", "rejected"))
    centre = compute_band_center(chosen[rejected > 0], rejected[rejected > 0])
    shares = {shift_key(f): (low <= f) & (f <= high) for f in (*lambdas, 1.0)}
    return {
        "bounded_share": bootstrap_shares({"": is_bounded}, **options)[""].to_dict(),
        "low_median": bootstrap_interval(low[is_bounded], "median", **medians).to_dict(),
        "high_median": bootstrap_interval(high[is_bounded], "median", **medians).to_dict(),
        "centre_median": bootstrap_interval(centre, "median", **medians).to_dict(),
        "admissible_share": {f: share.to_dict() for f, share in bootstrap_shares(shares, **options).items()},
    }


def shift_key(f: float) -> str:
    """Returns a shift factor as a JSON key: 0.9, 1, 1.05."""
    return f"{f:.10g}"


def summarize_prediction(frame: pd.DataFrame, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns for chosen, rejected and margin, each with intervals over pairs:

    `measured` and `predicted` (mean change, nats), `explained` (predicted mean over measured mean; None where the
    measured one cannot be told from 0, by which nothing can be divided), `correlation`
    (Pearson) and `rank_correlation` (Spearman) over pairs, `slope` (least squares, measured on predicted: 1 if the
    prediction has the right size), and `same_sign`, the share of pairs whose direction was predicted.

    Args:
        frame: prediction table (PREDICTION_SCHEMA).
    """
    measured, predicted = _columns(frame, ""), _columns(frame, "predicted_")
    clusters = read_clusters(frame)
    return {name: _describe(measured[name], predicted[name], clusters, seed) for name in QUANTITIES}


def _columns(frame: pd.DataFrame, prefix: str) -> dict[str, Values]:
    chosen, rejected = (frame[f"{prefix}{side}_change"].to_numpy(dtype=np.float64) for side in ("chosen", "rejected"))
    return {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}


def _describe(measured: Values, predicted: Values, clusters: Prompts | None, seed: int) -> dict[str, Any]:
    options: dict[str, Any] = {"clusters": clusters, "seed": seed}
    means = bootstrap_means({"measured": measured, "predicted": predicted}, **options)
    has_ratio = means["measured"].ci_low > 0 or means["measured"].ci_high < 0
    ratio = bootstrap_ratios({"": (predicted, measured)}, **options)[""] if has_ratio else None
    same = bootstrap_shares({"": np.sign(measured) == np.sign(predicted)}, **options)[""]
    return {
        **{name: interval.to_dict("mean") for name, interval in means.items()},
        "explained": ratio and ratio.to_dict(),
        "correlation": over_pairs(correlations, predicted, measured, clusters, seed),
        "rank_correlation": correlate_ranks(predicted, measured, clusters, seed),
        "slope": over_pairs(_fit_slopes, predicted, measured, clusters, seed),
        "same_sign": same.to_dict(),
    }


def _fit_slopes(predicted: Values, measured: Values, counts: Counts) -> Values:
    """Returns the slope of measured on predicted in every resample; 0 where the prediction does not vary."""
    centred = centre_counted(predicted, counts)
    spread = np.sum(counts * centred**2, axis=1)
    products = np.sum(counts * centred * measured, axis=1)
    return np.divide(products, spread, out=np.zeros_like(spread), where=spread > 0)
