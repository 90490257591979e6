"""What remains of a win rate when both answers are equally long, and how often the longer one is preferred.

The model is AlpacaEval 2's (Dubois et al., arXiv:2404.04475, eq. 3) without its term for the difficulty of each
instruction, which needs a fit over many models: logit P(win) = theta + phi tanh(length difference / its standard
deviation). The length-controlled win rate is the model's prediction at equal lengths, sigmoid(theta).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpotool.stats.bootstrap import CONFIDENCE, bca_interval, bootstrap_shares, has_repeats, sum_clusters
from dpotool.stats.intervals import Interval
from dpotool.stats.win_rates import estimate_win_rate

N_REFITS = 2_000
PENALTY = 0.01
"""Of the squared coefficients, as scikit-learn's C = 100: nothing for hundreds of questions, and an end to a fit in
which length separates wins from losses perfectly."""
_CELLS_PER_BLOCK = 1_000_000
_STEPS = 30

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthControl:
    """Win rate at equal length, and the part that length had in the verdicts."""

    win_rate: Interval
    """sigmoid(theta), ties as half."""
    longer_preferred: Interval
    """Share of decided questions with answers of different length whose longer answer was preferred."""
    length_weight: float
    """phi: log-odds that a much longer answer adds; above 0 the judge's verdicts go with length."""
    mean_difference: float
    """Model's length minus the baseline's, in the unit of the lengths."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of every summary."""
        return {
            "win_rate": self.win_rate.to_dict(),
            "longer_preferred": self.longer_preferred.to_dict("mean"),
            "length_weight": self.length_weight,
            "mean_difference": self.mean_difference,
        }


def control_length(
    outcomes: ArrayLike,
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    n_refits: int = N_REFITS,
    seed: int = 0,
) -> LengthControl:
    """Fits the win rate at equal length; the interval is a BCa bootstrap over questions, the fit made anew in each.

    Args:
        outcomes: +1, 0 or -1 a question, for the model.
        lengths, baseline_lengths: of the two answers, in one unit.
    """
    values = np.asarray(outcomes, dtype=np.float64)
    difference = np.asarray(lengths, dtype=np.float64) - np.asarray(baseline_lengths, dtype=np.float64)
    nothing = Interval(math.nan, math.nan, math.nan)
    if len(values) < 2:
        return LengthControl(nothing, nothing, math.nan, float(difference.mean()) if len(values) else math.nan)
    spread = float(difference.std())
    x = np.tanh(difference / spread) if spread > 0 else np.zeros(len(values))
    theta, phi = fit_logistic(x, (values + 1) / 2, np.ones((1, len(values))))[0]
    replicates, jackknife = _refit(x, (values + 1) / 2, clusters, n_refits, seed)
    interval = bca_interval(float(_sigmoid(theta)), _sigmoid(replicates), _sigmoid(jackknife), CONFIDENCE)
    if len(set(values)) == 1:
        interval = _widen(interval, estimate_win_rate(values, clusters=clusters, seed=seed).ties_half)
    return LengthControl(
        interval, _count_longer(values, difference, clusters, seed), float(phi), float(difference.mean())
    )


def _widen(interval: Interval, plain: Interval) -> Interval:
    """Resamples of outcomes that are all the same have no spread; the plain rate's interval, which is exact, knows."""
    ends = [interval.ci_low, interval.ci_high, plain.ci_low, plain.ci_high]
    return Interval(interval.value, float(np.nanmin(ends)), float(np.nanmax(ends)))


def fit_logistic(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Fits logit P = theta + phi x to shares y by Newton's method, once for each row of weights.

    Args:
        x, y: (n,); y from 0 to 1, a tie is one half.
        weights: (n_fits, n): how often each question counts.

    Returns:
        (n_fits, 2): theta and phi.
    """
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * x)
        residual, curvature = weights * (y - p), weights * p * (1 - p)
        g0, g1 = residual.sum(1) - PENALTY * theta, residual @ x - PENALTY * phi
        h00, h01, h11 = curvature.sum(1) + PENALTY, curvature @ x, curvature @ (x * x) + PENALTY
        determinant = h00 * h11 - h01**2
        steps = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0], axis=1) / determinant[:, None]
        steps = np.clip(steps, -2.0, 2.0)  # far out the curvature is nearly none, and a whole step would overshoot
        theta, phi = theta + steps[:, 0], phi + steps[:, 1]
        if np.abs(steps).max() < 1e-10:
            break
    return np.stack([theta, phi], axis=1)


def _refit(x: Floats, y: Floats, clusters: ArrayLike | None, n_refits: int, seed: int) -> tuple[Floats, Floats]:
    """Theta of resamples of the questions (or of the prompts), and with each of them left out."""
    if has_repeats(clusters):
        _, groups = np.unique(np.asarray(clusters), return_inverse=True)
    else:
        groups = np.arange(len(x))
    n_groups = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS_PER_BLOCK // len(x))
    replicates = []
    for start in range(0, n_refits, block):
        size = min(block, n_refits - start)
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=size)
        replicates.append(fit_logistic(x, y, counts[:, groups].astype(np.float64))[:, 0])
    return np.concatenate(replicates), _leave_out(x, y, groups)


def _leave_out(x: Floats, y: Floats, groups: NDArray[np.intp]) -> Floats:
    """Theta with each question left out, to first order: one Newton step from the fit on all of them."""
    theta, phi = fit_logistic(x, y, np.ones((1, len(x))))[0]
    p = _sigmoid(theta + phi * x)
    curvature = p * (1 - p)
    h00, h01, h11 = curvature.sum() + PENALTY, curvature @ x, curvature @ (x * x) + PENALTY
    influence = (h11 * (y - p) - h01 * (y - p) * x) / (h00 * h11 - h01**2)
    return theta - sum_clusters(influence[:, None], groups)[:, 0]


def _count_longer(values: Floats, difference: Floats, clusters: ArrayLike | None, seed: int) -> Interval:
    decided = (values != 0) & (difference != 0)
    if not decided.any():
        return Interval(math.nan, math.nan, math.nan)
    columns: Mapping[str, ArrayLike] = {"": np.sign(values[decided]) == np.sign(difference[decided])}
    groups = None if clusters is None else np.asarray(clusters)[decided]
    return bootstrap_shares(columns, clusters=groups, seed=seed)[""]


def _sigmoid(value: ArrayLike) -> Floats:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-np.asarray(value, dtype=np.float64)))
