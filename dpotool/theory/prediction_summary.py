"""How much of the change between two checkpoints, pair by pair, a first-order prediction explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpotool.stats.bootstrap import bootstrap_means, bootstrap_ratios, bootstrap_shares, read_clusters
from dpotool.stats.correlation import Counts, centre_counted, correlate_ranks, correlations, over_pairs

Values = NDArray[np.float64]
Prompts = NDArray[np.str_]
QUANTITIES = ("chosen", "rejected", "margin")


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
