"""The middle of the band, by hand."""

from __future__ import annotations

import numpy as np

from dpotool.theory.theorem import compute_band_center


def test_the_ratio_of_the_norms_by_hand():
    """‖W‖² = 9, ‖L‖² = 4: 3/2. Without L it is infinite, without both it is not a number; neither warns."""
    center = compute_band_center(np.array([9.0, 1.0, 0.0]), np.array([4.0, 0.0, 0.0]))
    np.testing.assert_array_equal(center, [1.5, np.inf, np.nan])
