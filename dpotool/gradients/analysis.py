"""The theory table: from gradient products to one row per pair (columns: `dpotool.runs.schemas.THEORY_SCHEMA`)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from dpotool.gradients.products import GradientProducts
from dpotool.theory.theorem import (
    classify_entanglement,
    compute_admissible_band,
    compute_grad_cosine,
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
