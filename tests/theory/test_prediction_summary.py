"""How predicted and measured changes are compared: by hand, and against scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress

from dpotool.theory.summary import summarize_prediction


def table(predicted: list[float], measured: list[float]) -> pd.DataFrame:
    """Chosen as given; rejected fall by 1 more than the chosen, as predicted."""
    predicted_, measured_ = np.array(predicted), np.array(measured)
    return pd.DataFrame(
        {
            "pair_id": range(len(predicted)),
            "chosen_logps": -10.0,
            "rejected_logps": -12.0,
            "chosen_change": measured_,
            "rejected_change": measured_ - 1,
            "predicted_chosen_change": predicted_,
            "predicted_rejected_change": predicted_ - 1,
        }
    )


def test_four_pairs_by_hand():
    """Measured = 2 predicted + 1 but for one pair: means -1 and -1; three of four signs right."""
    found = summarize_prediction(table([-3, -1, 1, -1], [-5, -1, 3, -1]))["chosen"]
    assert found["measured"]["mean"] == found["predicted"]["mean"] == -1
    assert found["measured"]["ci_low"] < 0 < found["measured"]["ci_high"]
    assert found["explained"] is None, "nothing can be divided by what may be 0"
    assert found["slope"]["value"] == pytest.approx(2)
    assert found["correlation"]["value"] == pytest.approx(1)
    assert found["same_sign"]["value"] == 1
    found = summarize_prediction(table([-3, -1, 1, -1], [-5, -1, -3, -1]))["chosen"]
    assert found["same_sign"]["value"] == 0.75


def test_slope_and_correlation_are_those_of_a_regression():
    draw = np.random.default_rng(0)
    predicted = draw.normal(-2, 1, 80)
    measured = 1.5 * predicted + draw.normal(0, 0.5, 80)
    found = summarize_prediction(table(list(predicted), list(measured)))["chosen"]
    line = linregress(predicted, measured)
    assert found["slope"]["value"] == pytest.approx(line.slope)
    assert found["correlation"]["value"] == pytest.approx(line.rvalue)
    for name, true in (("slope", 1.5), ("explained", 1 / 1.5)):
        assert found[name]["ci_low"] < true < found[name]["ci_high"]


def test_a_margin_that_never_changes_has_neither_correlation_nor_slope():
    found = summarize_prediction(table([-3, -1, 1, -1], [-5, -1, 3, -1]))["margin"]
    assert found["measured"]["mean"] == 1
    assert found["correlation"] is None and found["slope"] is None and found["rank_correlation"] is None


def test_two_pairs_are_too_few_for_a_correlation():
    found = summarize_prediction(table([-3, -1], [-5, -1]))["chosen"]
    assert found["correlation"] is None and found["explained"]["value"] == pytest.approx(2 / 3)


def test_pairs_of_one_prompt_are_drawn_together():
    """Each pair twice says no more than once; taken for pairs of their own, they would narrow every interval."""
    draw = np.random.default_rng(0)
    predicted = draw.normal(-2, 1, 40)
    measured = 1.5 * predicted + draw.normal(0, 0.5, 40)
    once = summarize_prediction(table(list(predicted), list(measured)))["chosen"]
    twice = pd.concat([table(list(predicted), list(measured)).assign(prompt_id=[f"{n:02}" for n in range(40)])] * 2)
    both = summarize_prediction(twice)["chosen"]
    apart = summarize_prediction(twice.assign(prompt_id=None))["chosen"]
    for name in ("measured", "explained", "slope", "correlation"):
        widths = [found[name]["ci_high"] - found[name]["ci_low"] for found in (once, both, apart)]
        assert widths[1] == pytest.approx(widths[0], rel=0.1), name
        assert widths[2] < 0.85 * widths[0], name
