"""How much of what two checkpoints differ by, pair by pair, a first-order prediction explains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap, spearmanr

from dpotool.stats.bootstrap import Interval, bootstrap_means, bootstrap_ratios, bootstrap_shares, read_clusters

Values = NDArray[np.float64]
Prompts = NDArray[np.str_]
N_RESAMPLES = 2_000
QUANTITIES = ("chosen", "rejected", "margin")
FEWEST_PAIRS = 3


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
        "explained": None if ratio is None else ratio.to_dict(),
        "correlation": _over_pairs(_correlate, predicted, measured, clusters, seed),
        "rank_correlation": correlate_ranks(predicted, measured, clusters, seed),
        "slope": _over_pairs(_fit_slope, predicted, measured, clusters, seed),
        "same_sign": same.to_dict(),
    }


def correlate_ranks(scores: Values, measured: Values, clusters: Prompts | None, seed: int) -> dict[str, float] | None:
    """Returns Spearman's correlation over pairs with its bootstrap interval, pairs of one prompt drawn together.

    None where it has no meaning: fewer than 3 pairs or prompts, or all of one value.
    """
    return _over_pairs(_correlate_ranks, scores, measured, clusters, seed)


def _over_pairs(
    statistic: Callable[[Values, Values], float],
    predicted: Values,
    measured: Values,
    clusters: Prompts | None,
    seed: int,
) -> dict[str, float] | None:
    """The statistic with its bootstrap interval; None where it has no meaning (fewer than 3 pairs, or one value)."""
    if len(measured) < FEWEST_PAIRS or np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return None
    labels = np.arange(len(measured)) if clusters is None else clusters
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def resample(drawn: NDArray[np.int_]) -> float:
        places = np.concatenate([members[number] for number in drawn])
        return statistic(predicted[places], measured[places])

    if len(members) < FEWEST_PAIRS:
        return None
    found = bootstrap(
        (np.arange(len(members)),),
        resample,
        vectorized=False,
        n_resamples=N_RESAMPLES,
        method="percentile",  # BCa would need a resample without each pair in turn, and these are bounded or robust
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in found.confidence_interval)
    return Interval(float(statistic(predicted, measured)), low, high).to_dict()


def _correlate(predicted: Values, measured: Values) -> float:
    centred = predicted - predicted.mean(), measured - measured.mean()
    norms = np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])
    return float(centred[0] @ centred[1] / norms) if norms > 0 else 0.0


def _correlate_ranks(predicted: Values, measured: Values) -> float:
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return 0.0
    return float(spearmanr(predicted, measured).statistic)


def _fit_slope(predicted: Values, measured: Values) -> float:
    centred = predicted - predicted.mean()
    spread = float(centred @ centred)
    return float(centred @ measured / spread) if spread > 0 else 0.0
