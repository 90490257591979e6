"""The proofs of theory-gap: products against autograd, and predicted gaps against measured ones.

Measured gaps are those of real steps of SGD and AdamW, over a ladder of learning rates.

A prediction of first order is right when its error falls with the square of the learning rate: the slope of
log residual over log rate is 2. A wrong coefficient would leave a term of first order, slope 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import expit
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.directions import compute_directional_changes, parameter_difference, weighted_sum
from dpotool.gradients.ghost.modes import training_only
from dpotool.gradients.ghost.selection import ParameterSelection
from dpotool.gradients.products import GradientProducts, PairProducts, collect_products, iter_gradient_products
from dpotool.gradients.real_steps import OPTIMIZERS, StepLab
from dpotool.gradients.weighted_gradients import compute_weighted_gradient
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.progress import SILENT, Progress
from dpotool.theory.summary import shift_key
from dpotool.theory.theorem import compute_accuracy_slopes, compute_gap_weights

Values = Float[np.ndarray, " pairs"]

LARGEST_CHANGE = 0.01
"""Nats by which the first rung's step changes the log-likelihood it changes most, to first order."""
RUNGS = 5
"""Learning rates, each half of the one before."""


LARGEST_ERROR = {"float64": 1e-6, "float32": 1e-4}
"""Relative error above which a check fails. Some models compute norms in float32 also where weights are float64."""
LARGEST_ERROR_COARSE = 5e-2
"""For bfloat16 and float16, where autograd itself rounds whole gradients."""


def verify_gaps(
    lab: StepLab, shifts: Sequence[float], *, gamma: float, progress: Progress = SILENT
) -> dict[str, dict[str, Any]]:
    """Measures g1 and g2 after real steps and compares them with the exact first order; call in `in_float64`.

    Returns optimizer -> f -> `g1`, `g2`: `predicted` (per unit of learning rate), and on each rung of the ladder
    `rate`, `measured` (gap over rate) and `residual` (root mean square over pairs of measured minus predicted gap),
    with the `slope` of log residual over log rate.
    """
    before = compute_pair_logps(lab.model, lab.pairs, batch_tokens=lab.batch_tokens)
    chosen_reference, rejected_reference = lab.reference_logps
    logratios = (before.chosen - chosen_reference, before.rejected - rejected_reference)
    dpo = lab.compute_loss_gradient(1.0)
    verified: dict[str, dict[str, Any]] = {optimizer: {} for optimizer in OPTIMIZERS}
    n_measured = len(OPTIMIZERS) * RUNGS * (1 + len(shifts))
    with progress.track("real steps", n_measured) as advance:
        ladders = {optimizer: _find_ladder(lab, optimizer, dpo) for optimizer in OPTIMIZERS}
        after_dpo = {}
        for optimizer, rates in ladders.items():
            after_dpo[optimizer] = [_measure(lab, optimizer, dpo, rate, gamma, logratios, advance) for rate in rates]
        for shift in shifts:
            gradient = lab.compute_loss_gradient(shift)
            for optimizer, rates in ladders.items():
                direction = _find_gap_direction(lab, optimizer, shift, (gradient, dpo), rates[-1], logratios)
                predicted = _predict(lab, direction, gamma, logratios)
                measured = [
                    _measure(lab, optimizer, gradient, rate, gamma, logratios, advance) - base
                    for rate, base in zip(rates, after_dpo[optimizer], strict=True)
                ]
                verified[optimizer][shift_key(shift)] = {
                    gap: _compare(rates, [values[number] for values in measured], predicted[number])
                    for number, gap in enumerate(("g1", "g2"))
                }
    return verified


def _measure(
    lab: StepLab,
    optimizer: str,
    gradient: Mapping[str, Tensor],
    rate: float,
    gamma: float,
    logratios: tuple[Values, Values],
    advance: Any,
) -> Float[np.ndarray, "2 pairs"]:
    """Returns log pi(chosen) and s(gamma m) of every pair after a step."""
    chosen, rejected = lab.measure(optimizer, gradient, rate)
    advance(1)
    reference = lab.reference_logps
    margins = (chosen - reference[0]) - (rejected - reference[1])
    return np.stack([chosen, expit(gamma * margins)])


def _find_ladder(lab: StepLab, optimizer: str, gradient: Mapping[str, Tensor]) -> list[float]:
    """Returns learning rates small enough for a first order to mean something, the largest first."""
    unit = 1e-6
    update = lab.find_update(optimizer, gradient, unit)
    (changes,), _ = compute_directional_changes(lab.model, lab.pairs, [update], batch_tokens=lab.batch_tokens)
    largest = max(np.abs(changes.chosen).max(), np.abs(changes.rejected).max()) / unit
    first = LARGEST_CHANGE / largest if largest > 0 else unit
    return [float(first / 2**rung) for rung in range(RUNGS)]


def _find_gap_direction(
    lab: StepLab,
    optimizer: str,
    shift: float,
    gradients: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    rate: float,
    logratios: tuple[Values, Values],
) -> Mapping[str, Tensor]:
    """Returns the direction D in which the shifted step ends up beyond DPO's, per unit of learning rate.

    For SGD, D is the mean in the theory, d_i W_i + e_i L_i, and not the difference of the two loss gradients, which it
    must equal.
    """
    if optimizer == "sgd":
        d, e = compute_gap_weights(*logratios, shift, lab.beta)
        n = len(lab.pairs)
        return compute_weighted_gradient(
            lab.model, lab.pairs, d / n, e / n, lab.parameters, batch_tokens=lab.batch_tokens
        )
    shifted, plain = (lab.find_update(optimizer, gradient, rate) for gradient in gradients)
    difference = parameter_difference(plain, shifted)
    return weighted_sum([(1 / rate, difference)])


def _predict(
    lab: StepLab, direction: Mapping[str, Tensor], gamma: float, logratios: tuple[Values, Values]
) -> Float[np.ndarray, "2 pairs"]:
    """Returns each pair's gap in log pi(chosen) and in s(gamma m), per unit of learning rate."""
    (changes,), _ = compute_directional_changes(lab.model, lab.pairs, [direction], batch_tokens=lab.batch_tokens)
    slopes = compute_accuracy_slopes(*logratios, gamma)
    return np.stack([changes.chosen, slopes * (changes.chosen - changes.rejected)])


def _compare(rates: Sequence[float], measured: Sequence[Values], predicted: Values) -> dict[str, Any]:
    residuals = [
        float(np.sqrt(np.mean((gap - rate * predicted) ** 2))) for rate, gap in zip(rates, measured, strict=True)
    ]
    return {
        "predicted": float(predicted.mean()),
        "slope": _fit_slope(rates, residuals),
        "ladder": [
            {"rate": rate, "measured": float(gap.mean() / rate), "residual": residual}
            for rate, gap, residual in zip(rates, measured, residuals, strict=True)
        ],
    }


def _fit_slope(rates: Sequence[float], residuals: Sequence[float]) -> float | None:
    """Fits log residual over log rate; None where a residual is exactly zero."""
    if min(residuals) <= 0:
        return None
    return float(np.polyfit(np.log(rates), np.log(residuals), 1)[0])


def check_products(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    products: Sequence[PairProducts],
    selection: ParameterSelection,
    n_checked: int,
    *,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compares <W,L>, ‖W‖², ‖L‖² of some pairs, spread evenly, with the slow truth.

    Args:
        pairs, products: aligned.
        n_checked: how many pairs; all, if there are fewer.

    Returns `n`, `largest_error` (relative to ‖W‖‖L‖, ‖W‖² and ‖L‖²), `tolerance` and `passed`.
    """
    places = np.unique(np.linspace(0, len(pairs) - 1, min(n_checked, len(pairs))).round().astype(int))
    slow = []
    with training_only(model, selection.parameters.values()), progress.track("autograd check", len(places)) as advance:
        for one in iter_gradient_products(model, [pairs[place] for place in places]):
            slow.append(one)
            advance(1)
    error = find_largest_error(collect_products(products[place] for place in places), collect_products(slow))
    dtype = str(next(iter(selection.parameters.values())).dtype).removeprefix("torch.")
    tolerance = LARGEST_ERROR.get(dtype, LARGEST_ERROR_COARSE)
    return {"n": len(places), "largest_error": error, "tolerance": tolerance, "passed": error <= tolerance}


def find_largest_error(fast: GradientProducts, slow: GradientProducts) -> float:
    """Returns the largest relative error; that of <W,L>, which may be near zero, is relative to ‖W‖‖L‖."""
    chosen, rejected = slow.chosen_grad_sq_norm, slow.rejected_grad_sq_norm
    scales = {
        "grad_inner_product": np.sqrt(chosen * rejected),
        "chosen_grad_sq_norm": chosen,
        "rejected_grad_sq_norm": rejected,
    }
    return max(
        float(np.max(np.abs(getattr(fast, name) - getattr(slow, name)) / np.where(scale > 0, scale, 1.0)))
        for name, scale in scales.items()
    )
