from __future__ import annotations

import itertools

import numpy as np
import pytest
from synthetic_frames import make_gap_summary

from dpotool.errors import DpotoolError
from dpotool.plots.gap_ladder import plot_gap_ladder


def test_a_column_per_optimizer_a_row_per_gap_a_line_per_f_with_its_slope():
    verification = make_gap_summary((0.95, 0.5))["verification"]

    figure = plot_gap_ladder(verification, model="demo", data="test")

    assert len(figure.axes) == 4
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["gradient descent", "AdamW, first step"]
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["f = 0.5: slope 2.00", "f = 0.95: slope 2.00", "slope 2"]
    ladder = verification["optimizers"]["sgd"]["0.5"]["g1"]["ladder"]
    expected = [[rung["rate"], rung["residual"]] for rung in ladder]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), expected)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert "demo, test, n = 12 pairs" in figure.get_suptitle()


def test_the_line_to_compare_with_has_slope_2():
    axes = plot_gap_ladder(make_gap_summary()["verification"], model="m", data="d").axes[0]

    x, y = np.log(axes.lines[-1].get_xydata()).T
    assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(2)
    assert axes.lines[-1].get_ydata()[0] > axes.lines[0].get_ydata()[0], "above every ladder"


def test_rates_are_the_ticks_and_do_not_run_into_each_other():
    figure = plot_gap_ladder(make_gap_summary()["verification"], model="m", data="d")

    figure.canvas.draw()
    labels = [label for label in figure.axes[2].get_xticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == ["8.0·10⁻⁴", "4.0·10⁻⁴", "2.0·10⁻⁴", "1.0·10⁻⁴"]
    errors = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "10⁻⁶" in errors, "and no formula, which is not set"
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert all(one.x1 <= two.x0 for one, two in itertools.pairwise(boxes))


def test_a_residual_of_zero_has_no_slope_and_can_be_drawn():
    verification = make_gap_summary((0.5,))["verification"]
    gap = verification["optimizers"]["sgd"]["0.5"]["g1"]
    gap["slope"] = None
    for rung in gap["ladder"]:
        rung["residual"] = 0.0

    figure = plot_gap_ladder(verification, model="m", data="d")

    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["f = 0.5: slope none"]


def test_no_real_step_is_one_line():
    with pytest.raises(DpotoolError, match=r"no measured gap to draw. Run `dpotool theory-gap --verify 16` first"):
        plot_gap_ladder({"n": 12, "optimizers": {"sgd": {}}}, model="m", data="d")
