"""Summarises a theory table and its batch products: gaps of every kind, and the advice on lambda."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dpotool.gradients.batch_products import BatchProducts, Values
from dpotool.stats.bootstrap import read_clusters
from dpotool.theory.advice import DOT_COLUMNS, GRID, advise, forecast_sgd
from dpotool.theory.drivers import compute_pushes
from dpotool.theory.gaps import compute_accuracy_slopes, compute_batch_gaps, compute_gap_weights, compute_self_step_gaps
from dpotool.theory.summary import PairGaps
from dpotool.theory.theorem import compute_paper_gaps, compute_u


def add_batch_columns(frame: pd.DataFrame, batch: BatchProducts) -> pd.DataFrame:
    """Returns the theory table with each pair's products with the mean gradients, and its driver score from them."""
    products = dict(zip(DOT_COLUMNS, (*batch.with_mean_chosen, *batch.with_mean_rejected), strict=True))
    frame = frame.assign(**products)
    pushes = compute_pushes(frame)
    return frame.assign(driver_score=np.nan if pushes is None else pushes[0])


def compute_gaps(
    frame: pd.DataFrame, batch: BatchProducts | None, shifts: Sequence[float], *, beta: float, gamma: float
) -> dict[float, dict[str, PairGaps]]:
    """Computes for every shift factor the printed, the self-step and (with batch products) the batch gaps, over eta."""
    inner, chosen, rejected, a, b, v = (
        frame[name].to_numpy(dtype=np.float64)
        for name in (
            "grad_inner_product",
            "chosen_grad_sq_norm",
            "rejected_grad_sq_norm",
            "chosen_logratios",
            "rejected_logratios",
            "v",
        )
    )
    gaps: dict[float, dict[str, PairGaps]] = {}
    for f in shifts:
        u = compute_u(inner, a, b, gamma=gamma, lambda_=f)
        gaps[f] = {
            "paper": PairGaps(*compute_paper_gaps(u, v, f)),
            "self_step": PairGaps(
                *compute_self_step_gaps(inner, chosen, rejected, a, b, shift=f, beta=beta, gamma=gamma)
            ),
        }
        if batch is not None:
            gaps[f]["batch"] = _describe_batch_gaps(batch, a, b, f, beta=beta, gamma=gamma)
    return gaps


def _describe_batch_gaps(
    batch: BatchProducts, a: Values, b: Values, f: float, *, beta: float, gamma: float
) -> PairGaps:
    """The gap g1 = <mean_i (d_i W_i + e_i L_i), mean_j W_j> is a mean over i and over j of the same pairs.

    Its linear part in a pair is that pair's place in both means: what it adds to the step (phi) and how the step moves
    it (psi), less g1 itself. Intervals over pairs need this sum, and psi has the sign of what happens to the pair. At
    the reference psi is there already, elsewhere it would take a pass for each f.
    """
    on_chosen, on_accuracy = compute_batch_gaps(batch.with_mean_chosen, batch.with_accuracy, a, b, shift=f, beta=beta)
    if np.any(a) or np.any(b):
        return PairGaps(on_chosen, on_accuracy, has_intervals=False)
    d, e = compute_gap_weights(a, b, f, beta)
    slopes = compute_accuracy_slopes(a, b, gamma)
    moved_chosen, moved_rejected = (
        d * with_chosen + e * with_rejected
        for with_chosen, with_rejected in zip(batch.with_mean_chosen, batch.with_mean_rejected, strict=True)
    )
    moved_accuracy = slopes * (moved_chosen - moved_rejected)
    return PairGaps(
        on_chosen + moved_chosen - on_chosen.mean(),
        on_accuracy + moved_accuracy - on_accuracy.mean(),
        signs=(moved_chosen, moved_accuracy),
    )


def give_advice(frame: pd.DataFrame, batch: BatchProducts, shifts: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Returns optimizer -> advice: from a gradient step on a fine grid of lambda, and AdamW's where it was taken."""
    bands = (frame["band_low"].to_numpy(), frame["band_high"].to_numpy())
    grid = tuple(sorted({*GRID, *shifts, 1.0}))
    options: dict[str, Any] = {"clusters": read_clusters(frame), "seed": seed}
    by_optimizer = {"sgd": advise(forecast_sgd(frame, grid), bands, optimizer="sgd", **options)}
    if batch.adamw:
        by_optimizer["adamw"] = advise(batch.adamw, bands, optimizer="adamw", **options)
    return by_optimizer
