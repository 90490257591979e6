"""Exact first-order gaps between a DPO-Shift and a DPO step, beside the paper's (THEORY, "Exact first-order gap").

Two steps of size eta from the same weights, one along the gradient of the shifted loss, one along DPO's, differ by
eta D with D = mean_i (d_i W_i + e_i L_i), so that a quantity w changes by eta <D, grad w> more under the shift.
Everything here is divided by eta, per pair, in numpy. Theorem 2.1 as printed is `theorem.compute_paper_gaps`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

Values = Float[np.ndarray, " pairs"]


class Gaps(NamedTuple):
    """Shift minus DPO, per pair; their mean over pairs is the gap of eq. 7."""

    chosen: Values
    """g1: of the chosen log-likelihood."""
    accuracy: Values
    """g2: of the smoothed reward accuracy s(gamma m)."""


class GapWeights(NamedTuple):
    """What a pair adds to D = mean_i (d_i W_i + e_i L_i)."""

    chosen: Values
    """d_i = c_i^f - c_i^1"""
    rejected: Values
    """e_i = c_i^1 - f c_i^f"""


def compute_step_weights(
    chosen_logratios: Values, rejected_logratios: Values, shift: float | Values, beta: float
) -> Values:
    """Computes c_i^f = beta s(beta (f b_i - a_i)): the descent direction of pair i's loss is c_i^f (W_i - f L_i)."""
    return beta * expit(beta * (shift * rejected_logratios - chosen_logratios))


def compute_gap_weights(
    chosen_logratios: Values, rejected_logratios: Values, shift: float | Values, beta: float
) -> GapWeights:
    """Computes d and e; at the reference (a = b = 0) d = 0 and e = beta (1 - f) / 2."""
    shifted = compute_step_weights(chosen_logratios, rejected_logratios, shift, beta)
    plain = compute_step_weights(chosen_logratios, rejected_logratios, 1.0, beta)
    return GapWeights(shifted - plain, plain - shift * shifted)


def compute_accuracy_slopes(chosen_logratios: Values, rejected_logratios: Values, gamma: float) -> Values:
    """Computes k_j = gamma s(gamma m_j) s(-gamma m_j), the derivative of s(gamma m_j) in m_j."""
    margins = gamma * (chosen_logratios - rejected_logratios)
    return gamma * expit(margins) * expit(-margins)


def compute_self_step_gaps(
    grad_inner_product: Values,
    chosen_grad_sq_norm: Values,
    rejected_grad_sq_norm: Values,
    chosen_logratios: Values,
    rejected_logratios: Values,
    *,
    shift: float,
    beta: float,
    gamma: float,
) -> Gaps:
    """Computes the gaps of a step on each pair alone, divided by the learning rate eta.

    g1 = d‖W‖² + e<W,L>,  g2 = k [ d(‖W‖² - <W,L>) + e(<W,L> - ‖L‖²) ].
    """
    d, e = compute_gap_weights(chosen_logratios, rejected_logratios, shift, beta)
    k = compute_accuracy_slopes(chosen_logratios, rejected_logratios, gamma)
    chosen = d * chosen_grad_sq_norm + e * grad_inner_product
    rejected = d * grad_inner_product + e * rejected_grad_sq_norm
    return Gaps(chosen, k * (chosen - rejected))


def compute_batch_gaps(
    on_chosen: tuple[Values, Values],
    on_accuracy: tuple[Values, Values],
    chosen_logratios: Values,
    rejected_logratios: Values,
    *,
    shift: float,
    beta: float,
) -> Gaps:
    """Computes each pair's part of the gaps of one step on all pairs, over eta; the gaps are the means over pairs.

    g1 = <D, mean_j W_j> = mean_i (d_i <W_i, mean W> + e_i <L_i, mean W>), and g2 likewise with mean_j k_j (W_j - L_j):
    no product between two pairs is needed, and every f costs nothing more.

    Args:
        on_chosen: <W_i, mean_j W_j> and <L_i, mean_j W_j>.
        on_accuracy: <W_i, K> and <L_i, K>, K = mean_j k_j (W_j - L_j).
    """
    d, e = compute_gap_weights(chosen_logratios, rejected_logratios, shift, beta)
    return Gaps(*(d * of_chosen + e * of_rejected for of_chosen, of_rejected in (on_chosen, on_accuracy)))
