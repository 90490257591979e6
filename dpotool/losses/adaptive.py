"""A shift factor for each pair, from its gradient products: the paper's stated future work, and a sharper version.

- `sign`: f < 1 where u_i > 0, f > 1 where u_i < 0 (arXiv:2502.07599, future work), here lambda and its mirror image
  2 - lambda. The sign of v_i decides nothing more: u_i < 0 makes v_i = <W,L> - ‖L‖² negative too, so that f > 1 raises
  both targets; where u_i > 0 the theorem asks for f < 1 for the chosen answer's sake, whatever v_i is.
- `band`: f* = ‖W‖/‖L‖, the middle (on a log scale) of the f for which a step on the pair raises the chosen and lowers
  the rejected; 1 where <W,L> <= 0, as every f does there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.losses.schedules import DEFAULT_LAMBDA, DEFAULT_LAMBDA_MIN
from dpotool.theory.theorem import compute_band_center

Values = Float[np.ndarray, " pairs"]
ADAPTIVE = "adaptive"
"""The name that `--lambda-schedule` has for it, though it does not change over time."""
RULES = ("sign", "band")


@dataclass(frozen=True, slots=True)
class AdaptiveLambda:
    """How a pair's gradient products become its shift factor.

    Raises:
        DpotoolError: unknown rule, or a value out of range or not taken by the rule.
    """

    rule: str = "sign"
    lambda_: float | None = None
    """The sign rule's f where u > 0."""
    lambda_min: float | None = None
    """No pair's f is below it."""
    allow_above_one: bool = False
    """Otherwise no pair's f is above 1."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise DpotoolError(
                f"unknown rule {self.rule!r}", where="--adaptive-rule", remedy=suggest_nearest(self.rule, RULES)
            )
        if self.rule == "band" and self.lambda_ is not None:
            raise DpotoolError("the band rule takes no lambda", where="--lambda", remedy="It takes --lambda-min")
        lambda_ = DEFAULT_LAMBDA if self.lambda_ is None else self.lambda_
        lowest = min(DEFAULT_LAMBDA_MIN, lambda_) if self.lambda_min is None else self.lambda_min
        for flag, value in (("--lambda", lambda_), ("--lambda-min", lowest)):
            if not 0 < value <= 1:
                raise DpotoolError("not a usable lambda", where=flag, expected="0 < lambda <= 1", got=f"{value:g}")
        if self.rule == "sign":
            object.__setattr__(self, "lambda_", lambda_)
        object.__setattr__(self, "lambda_min", lowest)

    def compute_shifts(
        self, u: Values, grad_inner_product: Values, chosen_grad_sq_norm: Values, rejected_grad_sq_norm: Values
    ) -> Values:
        """Computes f of every pair, within [lambda_min, 1], or above where that is allowed (and then at most 2).

        A pair with u = 0 (sign) or without a gradient on one side (band) gets 1, the DPO loss.
        """
        if self.rule == "sign":
            assert self.lambda_ is not None
            shifts = np.select([u > 0, u < 0], [self.lambda_, 2 - self.lambda_], default=1.0)
        else:
            has_center = (grad_inner_product > 0) & (chosen_grad_sq_norm > 0) & (rejected_grad_sq_norm > 0)
            shifts = np.where(has_center, compute_band_center(chosen_grad_sq_norm, rejected_grad_sq_norm), 1.0)
        return np.clip(shifts, self.lambda_min, 2.0 if self.allow_above_one else 1.0)
