"""The middle of a pair's band of shift factors, which theory, adaptive lambdas, summaries and pictures all need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def compute_band_center(chosen_grad_sq_norm: Values, rejected_grad_sq_norm: Values) -> Values:
    """Computes f* = ‖W‖/‖L‖, the geometric mean of the band's ends; infinite or NaN where L is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(chosen_grad_sq_norm) / np.sqrt(rejected_grad_sq_norm)
