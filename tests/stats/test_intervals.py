from __future__ import annotations

import math

import pytest

from dpotool.stats.intervals import format_interval


@pytest.mark.parametrize(
    ("interval", "options", "text"),
    [
        ({"mean": 1.234, "ci_low": 1.1, "ci_high": 1.36}, {}, "+1.23 [+1.10, +1.36]"),
        ({"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}, {"form": ".0f", "scale": 100, "unit": " %"}, "50 % [40, 60]"),
        ({"mean": -0.004, "ci_low": -0.006, "ci_high": -0.0}, {}, "+0.00 [-0.01, +0.00]"),
        ({"value": 2.0, "ci_low": 0.7, "ci_high": math.inf}, {"form": ".1f"}, "2.0 [0.7, ∞]"),
        ({"mean": 1.5, "ci_low": math.nan, "ci_high": math.nan}, {}, "+1.50"),
        ({"mean": 1.5, "ci_low": None, "ci_high": None}, {}, "+1.50"),
        ({"value": math.nan, "ci_low": math.nan, "ci_high": math.nan}, {}, "-"),
        (None, {}, "-"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_out(interval, options, text):
    assert format_interval(interval, **options) == text
