"""The advice on lambda: forecasts by hand, and what is recommended in cases made to have one answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dpotool.theory.advice import advise, forecast_sgd, rank_drivers

OPEN = (np.zeros(200), np.full(200, np.inf))


def table_from(W: np.ndarray, L: np.ndarray) -> pd.DataFrame:
    """A theory table of pairs whose gradients are known."""
    mean_w, mean_l = W.mean(0), L.mean(0)
    return pd.DataFrame(
        {
            "pair_id": np.arange(len(W)) + 10,
            "grad_inner_product": (W * L).sum(1),
            "chosen_grad_sq_norm": (W * W).sum(1),
            "rejected_grad_sq_norm": (L * L).sum(1),
            "chosen_dot_mean_chosen": W @ mean_w,
            "rejected_dot_mean_chosen": L @ mean_w,
            "chosen_dot_mean_rejected": W @ mean_l,
            "rejected_dot_mean_rejected": L @ mean_l,
        }
    )


def draw_gradients(n: int, overlap: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Chosen along axis 0, rejected along axis 1 and `overlap` times axis 0, with noise of each pair's own."""
    draw = np.random.default_rng(seed)
    W, L = draw.normal(0, 0.3, (n, 6)), draw.normal(0, 0.3, (n, 6))
    W[:, 0] += 1
    L[:, 0] += overlap
    L[:, 1] += 1
    return W, L


def test_a_forecast_is_for_a_step_on_the_other_pairs():
    """By brute force: every pair's means are over the others."""
    W, L = draw_gradients(7, 0.5)
    forecast = forecast_sgd(table_from(W, L), (0.6, 1.0))
    for place in range(7):
        others = np.arange(7) != place
        step = W[others].mean(0) - 0.6 * L[others].mean(0)
        assert forecast[0.6][0][place] == pytest.approx(W[place] @ step)
        assert forecast[0.6][1][place] == pytest.approx(L[place] @ step)


def advise_on(overlap: float, **options: float) -> dict:
    W, L = draw_gradients(1000, overlap)
    shifts = (0.2, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return advise(forecast_sgd(table_from(W, L), shifts), OPEN, optimizer="sgd", n_resamples=1000, **options)


def test_without_displacement_dpo_is_recommended():
    """Chosen and rejected have nothing in common: a DPO step raises the chosen by as much as it lowers the rejected."""
    advice = advise_on(0.0)
    assert (advice["recommended_lambda"], advice["basis"]) == (1.0, "dpo")
    dpo = advice["grid"]["1"]
    assert dpo["chosen_change"]["mean"] == pytest.approx(0.5, abs=0.03)
    assert dpo["chosen_change"]["mean"] - dpo["rejected_change"]["mean"] == pytest.approx(1.0)
    assert dpo["margin_change"] == {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    assert "to first order there is no displacement" in advice["reason"]
    assert advice["lowest_affordable_lambda"] == 0.2 and "0.2 is the smallest lambda that is shown" in advice["reason"]
    cost = advice["grid"]["0.2"]["accuracy_difference"]
    assert -0.03 < cost["ci_low"] < 0, "it may cost something, and is shown to cost less than is allowed"


def test_with_displacement_the_largest_lambda_that_keeps_the_chosen_is_recommended():
    """Overlap 1.35: along axis 0 a step moves 1 - 1.35 f, so the chosen rise for f < 1/1.35 = 0.74."""
    advice = advise_on(1.35)
    assert advice["grid"]["0.8"]["chosen_change"]["mean"] < 0 < advice["grid"]["0.7"]["chosen_change"]["mean"]
    assert (advice["recommended_lambda"], advice["basis"]) == (0.7, "keeps_chosen")
    assert "the largest lambda at which the chosen answers do not fall" in advice["reason"]


def test_where_the_cure_costs_too_much_the_cost_is_limited():
    """Overlap 4: only f < 1/4 would keep the chosen.

    Margin along the step: (1 - 4)(1 - 4 f) + f = 13 f - 3, at f = 1: 10; half of it is kept down to f = 0.62.
    """
    advice = advise_on(4.0)
    assert (advice["recommended_lambda"], advice["basis"]) == (0.7, "limits_cost")
    assert advice["lowest_affordable_lambda"] == 0.7
    assert advice["grid"]["0.6"]["margin_change"]["mean"] == pytest.approx(0.48, abs=0.02)
    assert "Only at lambda 0.2 would the chosen answers stop falling, and that costs more" in advice["reason"]


def test_an_accuracy_that_is_surely_lower_is_not_affordable():
    """Of 100 pairs the shift loses 20 for good: the margin would be affordable, the accuracy is not."""
    gain = np.ones(100)
    lost = np.where(np.arange(100) < 20, -0.1, 1.0)
    changes = {1.0: (-gain, -2 * gain), 0.5: (0.1 * gain, 0.1 * gain - lost)}
    advice = advise(changes, (np.zeros(100), np.ones(100)), optimizer="sgd")
    assert advice["grid"]["0.5"]["margin_change"]["mean"] > 0.5
    assert advice["recommended_lambda"] == 1.0 and "Only at lambda 0.5" in advice["reason"]
    assert "no smaller lambda of the grid is shown to lose less than 3 points" in advice["reason"]


def test_few_pairs_admit_less_and_never_more():
    """One pair in twenty is lost for good: of 40 pairs 5 points [-13, 0] rule nothing out, nor do more at 5 points."""
    for n in (40, 4000):
        gain = np.ones(n)
        lost = np.where(np.arange(n) < n // 20, -0.1, 1.0)
        changes = {1.0: (-gain, -2 * gain), 0.5: (0.1 * gain, 0.1 * gain - lost)}
        advice = advise(changes, (np.zeros(n), np.ones(n)), optimizer="sgd")
        assert advice["lowest_affordable_lambda"] == 1.0


def test_accuracy_is_the_share_of_margins_that_rise():
    changes = {1.0: (np.array([3.0, 1.0, 1.0, 2.0]), np.zeros(4)), 0.5: (np.array([1.0, -1.0, 1.0, 1.0]), np.zeros(4))}
    advice = advise(changes, (np.array([0.4, 0.6, 0.0, 0.0]), np.full(4, np.inf)), optimizer="adamw")
    half = advice["grid"]["0.5"]
    assert half["accuracy"]["value"] == 0.75 and half["accuracy_difference"]["mean"] == -0.25
    assert half["self_step_admissible_share"]["value"] == 0.75
    assert half["chosen_change"]["mean"] == pytest.approx(2 / 7), "nats per nat of margin that DPO gains"
    assert half["margin_change"]["ci_low"] < 2 / 7 < half["margin_change"]["ci_high"]


def test_without_a_gain_in_margin_there_is_no_scale_and_it_is_said():
    draw = np.random.default_rng(1)
    changes = {1.0: (draw.normal(size=20), draw.normal(size=20))}
    advice = advise(changes, (np.zeros(20), np.ones(20)), optimizer="sgd")
    assert advice["recommended_lambda"] is None and advice["grid"] == {}
    assert "cannot be distinguished from 0" in advice["reason"]


def test_pairs_of_one_prompt_are_resampled_together():
    draw = np.random.default_rng(2)
    chosen, rejected = draw.normal(-1, 1, 60), draw.normal(-3, 1, 60)
    changes = {1.0: (np.repeat(chosen, 3), np.repeat(rejected, 3))}
    bands = (np.zeros(180), np.full(180, np.inf))
    widths = []
    for clusters in (np.repeat(np.arange(60).astype(str), 3), None):
        change = advise(changes, bands, optimizer="adamw", clusters=clusters)["grid"]["1"]["chosen_change"]
        widths.append(change["ci_high"] - change["ci_low"])
    assert widths[0] / widths[1] == pytest.approx(3**0.5, rel=0.15)


def test_drivers_by_brute_force():
    W, L = draw_gradients(30, 1.2)
    ranked = rank_drivers(table_from(W, L), 3)
    others = [(W[np.arange(30) != i].mean(0), W[i] - L[i]) for i in range(30)]
    pushes = np.array([step @ mean for mean, step in others])
    dpo = forecast_sgd(table_from(W, L), (1.0,))[1.0]
    pushes /= (dpo[0] - dpo[1]).sum()
    assert [place for place, _ in ranked] == np.argsort(pushes)[:3].tolist()
    for place, driver in ranked:
        assert driver["pair_id"] == place + 10
        assert driver["push"] == pytest.approx(pushes[place])
    assert pushes.sum() == pytest.approx(dpo[0].sum() / (dpo[0] - dpo[1]).sum()), "together: what DPO does"


def test_pairs_that_push_nothing_down_drive_nothing():
    W, L = draw_gradients(30, -1.0)
    assert rank_drivers(table_from(W, L), 5) == []
