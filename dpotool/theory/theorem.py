"""What the three products <W,L>, ‖W‖², ‖L‖² say about a pair: formulas over arrays, one element per pair.

Theorem 2.1 of DPO-Shift (arXiv:2502.07599) *as printed* (`compute_paper_gaps`), and first-order consequences of one
gradient step on one pair ("self-step") or on a batch, which are exact where the theorem is not. docs/theory.md says
where they part. f is the shift factor, a and b are the chosen and rejected log-ratios, s the logistic sigmoid.

Gaps: two steps of size eta from the same weights, one along the gradient of the shifted loss, one along DPO's, differ
by eta D with D = mean_i (d_i W_i + e_i L_i), so that a quantity w changes by eta <D, grad w> more under the shift.
Everything here is divided by eta.
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


CHOSEN_UP_REJECTED_DOWN = "chosen_up_rejected_down"
BOTH_DOWN = "both_down"
BOTH_UP = "both_up"
UNMOVED = "unmoved"
ENTANGLEMENT_CASES = (CHOSEN_UP_REJECTED_DOWN, BOTH_DOWN, BOTH_UP, UNMOVED)
"""What one DPO step on the pair alone does to its two likelihoods; `both_down` is likelihood displacement."""


def compute_u(
    grad_inner_product: Values,
    chosen_logratios: Values,
    rejected_logratios: Values,
    *,
    gamma: float = 1.0,
    lambda_: float = 1.0,
) -> Values:
    """Computes u_i = c_i <W_i, L_i> with c_i = gamma s(f gamma b_i - gamma a_i): Theorem 2.1, u1 in its second version.

    The printed weight holds one f for a comparison of two losses. Where the policy is the reference (a = b = 0) every
    f gives c = gamma / 2; elsewhere `lambda_` chooses it: 1 is the weight of the DPO step, f that of the shifted one.
    """
    weights = gamma * expit(lambda_ * gamma * rejected_logratios - gamma * chosen_logratios)
    return weights * grad_inner_product


def compute_v(grad_inner_product: Values, rejected_grad_sq_norm: Values) -> Values:
    """Computes v_i = <W_i, L_i> - ‖L_i‖²: Theorem 2.1 with its bounded factor eta1 set to 1, as the paper does."""
    return grad_inner_product - rejected_grad_sq_norm


def compute_paper_gaps(u: Values, v: Values, shift: float) -> Gaps:
    """Computes g1 = (1 - f) u and g2 = (1 - f) v per pair, as printed (eq. 7 and Theorem 2.1 of arXiv:2502.07599)."""
    return Gaps((1 - shift) * u, (1 - shift) * v)


def compute_grad_cosine(
    grad_inner_product: Values, chosen_grad_sq_norm: Values, rejected_grad_sq_norm: Values
) -> Values:
    """Computes <W,L> / (‖W‖ ‖L‖), within [-1, 1]; NaN where a gradient is zero, which has no direction."""
    norms = np.sqrt(chosen_grad_sq_norm) * np.sqrt(rejected_grad_sq_norm)
    cosine = np.divide(grad_inner_product, norms, out=np.full_like(norms, np.nan), where=norms > 0)
    return np.clip(cosine, -1.0, 1.0)


class SelfStepChanges(NamedTuple):
    """First-order changes of a pair's log-likelihoods after a step on it alone, over C = step size * weight > 0."""

    chosen: Values
    rejected: Values


def compute_self_step_changes(
    grad_inner_product: Values, chosen_grad_sq_norm: Values, rejected_grad_sq_norm: Values, shift: float | Values
) -> SelfStepChanges:
    """Computes d log pi(chosen) = ‖W‖² - f<W,L> and d log pi(rejected) = <W,L> - f‖L‖², both divided by C.

    The descent direction of the shifted loss is C (W - f L): its chosen and rejected parts are products with W and L.
    """
    return SelfStepChanges(
        chosen_grad_sq_norm - shift * grad_inner_product, grad_inner_product - shift * rejected_grad_sq_norm
    )


def classify_entanglement(
    grad_inner_product: Values, chosen_grad_sq_norm: Values, rejected_grad_sq_norm: Values
) -> np.ndarray:
    """Names what a DPO step on each pair alone does to its likelihoods, to first order (arXiv:2410.13828).

    `both_down` if <W,L> > ‖W‖², `both_up` if <W,L> > ‖L‖²; by Cauchy-Schwarz never both, and <W,L> reaches both only
    where W = L, as in a pair of identical completions: `unmoved`. Else `chosen_up_rejected_down`; on its boundaries one
    of the two stays where it is.
    """
    changes = compute_self_step_changes(grad_inner_product, chosen_grad_sq_norm, rejected_grad_sq_norm, 1.0)
    return np.select(
        [(changes.chosen <= 0) & (changes.rejected >= 0), changes.chosen < 0, changes.rejected > 0],
        [UNMOVED, BOTH_DOWN, BOTH_UP],
        default=CHOSEN_UP_REJECTED_DOWN,
    )


class AdmissibleBand(NamedTuple):
    """The f for which a step on the pair alone neither lowers the chosen likelihood nor raises the rejected one."""

    low: Values
    """<W,L>/‖L‖²: below it the rejected rises. 0 where <W,L> <= 0."""
    high: Values
    """‖W‖²/<W,L>: above it the chosen falls. Infinite where <W,L> <= 0."""


def compute_admissible_band(
    grad_inner_product: Values, chosen_grad_sq_norm: Values, rejected_grad_sq_norm: Values
) -> AdmissibleBand:
    """Computes the band of f (as r = 1/f in arXiv:2604.18239); never empty, by Cauchy-Schwarz.

    Where <W,L> > 0 its centre on a log scale is ‖W‖/‖L‖ (`compute_band_center`). Where <W,L> <= 0 every f > 0 is in it:
    [0, inf].
    """
    center = compute_band_center(chosen_grad_sq_norm, rejected_grad_sq_norm)
    is_entangled = grad_inner_product > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Both ends touch the centre where W and L are parallel; rounding must not carry them past it.
        low = np.minimum(grad_inner_product / rejected_grad_sq_norm, center)
        high = np.maximum(chosen_grad_sq_norm / grad_inner_product, center)
    return AdmissibleBand(np.where(is_entangled, low, 0.0), np.where(is_entangled, high, np.inf))


def compute_band_center(chosen_grad_sq_norm: Values, rejected_grad_sq_norm: Values) -> Values:
    """Computes f* = ‖W‖/‖L‖, the geometric mean of the band's ends; infinite or NaN where L is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(chosen_grad_sq_norm) / np.sqrt(rejected_grad_sq_norm)
