"""From gradient products to the theory table, a row per pair (`runs.schemas.THEORY_SCHEMA`), and to its summary.

The summary has the gaps of every kind and the advice on lambda; `write_theory` writes both into the run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from jaxtyping import Float

from dpotool.gradients.batch_products import BatchProducts
from dpotool.gradients.engine import EngineReport
from dpotool.gradients.products import GradientProducts
from dpotool.likelihood.subject import OpenSubject
from dpotool.runs.about import Fingerprints, TheoryAbout
from dpotool.runs.schemas import THEORY_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.scoring import TheoryConfig
from dpotool.stats.bootstrap import read_clusters
from dpotool.theory.advice import DOT_COLUMNS, GRID, advise, compute_pushes, forecast_sgd
from dpotool.theory.summary import PairGaps
from dpotool.theory.theorem import (
    classify_entanglement,
    compute_accuracy_slopes,
    compute_admissible_band,
    compute_batch_gaps,
    compute_gap_weights,
    compute_grad_cosine,
    compute_paper_gaps,
    compute_self_step_gaps,
    compute_u,
    compute_v,
)
from dpotool.wording import count

Values = Float[np.ndarray, " pairs"]


def build_theory_frame(
    products: GradientProducts,
    *,
    reference_chosen_logps: Values | None = None,
    reference_rejected_logps: Values | None = None,
    gamma: float = 1.0,
) -> pd.DataFrame:
    """Computes u, v, band and entanglement of every pair from its gradient products; u with the DPO step's weight.

    Args:
        reference_chosen_logps, reference_rejected_logps: nats, aligned with the pairs; None if the model is its own
            reference, as at the start of training.
        gamma: scale of the smoothed reward accuracy s(gamma m), above 0; 1 in the paper's figures.

    Raises:
        ValueError: reference values are missing on one side, or are not as many as the products.
    """
    chosen_logratios, rejected_logratios = _compute_logratios(
        products, reference_chosen_logps, reference_rejected_logps
    )
    three = (products.grad_inner_product, products.chosen_grad_sq_norm, products.rejected_grad_sq_norm)
    band = compute_admissible_band(*three)
    return pd.DataFrame(
        {
            "pair_id": products.pair_id,
            "grad_inner_product": products.grad_inner_product,
            "chosen_grad_sq_norm": products.chosen_grad_sq_norm,
            "rejected_grad_sq_norm": products.rejected_grad_sq_norm,
            "grad_cosine": compute_grad_cosine(*three),
            "chosen_logratios": chosen_logratios,
            "rejected_logratios": rejected_logratios,
            "u": compute_u(products.grad_inner_product, chosen_logratios, rejected_logratios, gamma=gamma),
            "v": compute_v(products.grad_inner_product, products.rejected_grad_sq_norm),
            "band_low": band.low,
            "band_high": band.high,
            "entanglement": classify_entanglement(*three),
        }
    )


def _compute_logratios(
    products: GradientProducts, reference_chosen_logps: Values | None, reference_rejected_logps: Values | None
) -> tuple[Values, Values]:
    if reference_chosen_logps is None and reference_rejected_logps is None:
        return np.zeros_like(products.chosen_logps), np.zeros_like(products.rejected_logps)
    if reference_chosen_logps is None or reference_rejected_logps is None:
        raise ValueError("reference values are needed for both completions or for neither")
    n_pairs = len(products.pair_id)
    if len(reference_chosen_logps) != n_pairs or len(reference_rejected_logps) != n_pairs:
        raise ValueError(
            f"expected reference values of {count(n_pairs, 'pair')}, "
            f"got {len(reference_chosen_logps)} and {len(reference_rejected_logps)}"
        )
    return products.chosen_logps - reference_chosen_logps, products.rejected_logps - reference_rejected_logps


def describe_table(
    config: TheoryConfig, opened: OpenSubject, report: EngineReport, *, at_reference: bool
) -> TheoryAbout:
    """Returns what table and summary say of themselves: model, data, scales, and which parameters count."""
    fingerprint = opened.pair_set.source.fingerprint
    return TheoryAbout(
        **opened.describe("theory-gap", Fingerprints(data=fingerprint)),
        data_fingerprint=fingerprint,
        gamma=config.gamma,
        parameters=report.parameters,
        n_parameters=report.n_parameters,
        n_parameters_by_form=report.n_by_form,
        autograd_fallback=list(report.fallback),
        at_reference=at_reference,
    )


def write_theory(
    config: TheoryConfig, opened: OpenSubject, frame: pd.DataFrame, about: TheoryAbout, summary: dict[str, Any]
) -> Path:
    """Writes table, summary and, into a folder without one, a manifest; of several processes the first one does."""
    folder, source = opened.subject.folder, opened.pair_set.source
    part = "" if config.parameters == "all" else config.parameters
    variant = "-".join(filter(None, (opened.subject.variant, part)))  # a part never replaces the whole
    path = folder.table_path("theory", source.name, source.split, format=config.format, variant=variant)
    if not PartialState().is_main_process:
        return path
    write_table(frame, path, THEORY_SCHEMA, about.to_dict(), format=config.format)
    write_summary(path, summary)
    opened.note_run("theory")
    return path


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
