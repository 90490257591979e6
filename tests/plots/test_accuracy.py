from __future__ import annotations

import itertools

import numpy as np
import pytest
from synthetic_frames import make_comparison, make_runs_table

from dpotool.errors import DpotoolError
from dpotool.plots.accuracy import plot_accuracy


def points_of(axes) -> list[tuple[float, float]]:
    """Every marked point, in the order of drawing."""
    return [
        (float(x), float(y))
        for bars in axes.containers
        for x, y in zip(bars.lines[0].get_xdata(), bars.lines[0].get_ydata(), strict=True)
    ]


def test_differences_of_constant_lambdas_lie_on_a_line_with_dpo_at_zero_and_accuracies_on_the_right():
    runs = make_runs_table((1.0, 0.5, 0.9))

    figure = plot_accuracy(make_comparison(runs), model="demo", data="test", recommended="DPO-Shift λ=0.9")

    (axes,) = figure.axes
    accuracy = runs.set_index("lambda")["reward_accuracy"]
    expected = [(f, 100 * (accuracy[f] - accuracy[1.0])) for f in (0.5, 0.9, 1.0)]
    np.testing.assert_allclose(points_of(axes), expected, atol=1e-9)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(legend) == ["DPO-Shift, constant λ", "recommended", "λ = 1 (DPO)"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "0.9", "0.5"]
    assert "demo, test, n = 300 pairs" in figure.get_suptitle()
    [right] = axes.child_axes
    figure.canvas.draw()
    low, high = right.get_ylim()
    np.testing.assert_allclose(np.array([low, high]) - axes.get_ylim(), 100 * accuracy[1.0])


def test_bars_span_the_paired_interval():
    comparison = make_comparison(make_runs_table((0.5, 1.0)))

    (axes,) = plot_accuracy(comparison, model="m", data="d").axes

    ((_, low), (_, high)) = axes.containers[0].lines[2][0].get_segments()[0]
    interval = comparison.differences["DPO-Shift λ=0.5"].metrics["reward_accuracy"].difference
    assert (low, high) == pytest.approx((100 * interval.ci_low, 100 * interval.ci_high))


def test_schedules_and_other_losses_stand_beside_in_shapes_of_their_own():
    runs = make_runs_table((0.9, 1.0), ("DPO-Shift λ=0.75→1 ↑", "IPO"))

    left, right = plot_accuracy(make_comparison(runs), model="m", data="d").axes

    assert len(points_of(left)) == 2
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["DPO-Shift\nλ=0.75→1 ↑", "IPO"]
    assert len({bars.lines[0].get_marker() for bars in right.containers}) == 2
    assert left.get_ylim() == right.get_ylim()


def test_seeds_of_one_lambda_are_drawn_each_and_the_line_goes_through_their_mean():
    runs = make_runs_table((0.5, 0.5, 1.0)).assign(reward_accuracy=[0.6, 0.7, 0.8], label=["a", "b", "DPO"])

    (axes,) = plot_accuracy(make_comparison(runs), model="m", data="d").axes

    np.testing.assert_allclose(sorted(points_of(axes)), [(0.5, -20), (0.5, -10), (1.0, 0)], atol=1e-9)
    assert any(np.allclose(line.get_ydata(), [-15, 0]) for line in axes.lines if len(line.get_ydata()) == 2)


def test_crowded_lambdas_are_not_numbered_on_top_of_each_other():
    runs = make_runs_table((0.5, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0))
    figure = plot_accuracy(make_comparison(runs), model="m", data="d")

    figure.canvas.draw()
    boxes = sorted((label.get_window_extent() for label in figure.axes[0].get_xticklabels()), key=lambda box: box.x0)
    assert len(boxes) > 2
    assert all(one.x1 < two.x0 for one, two in itertools.pairwise(boxes))


def test_differences_without_intervals_can_be_drawn():
    unbounded = make_runs_table((0.5, 1.0)).assign(reward_accuracy_low=np.nan, reward_accuracy_high=np.nan)
    for runs in (unbounded, make_runs_table((), ("IPO", "SimPO"))):
        figure = plot_accuracy(make_comparison(runs), model="m", data="d")
        figure.canvas.draw()
        assert figure.axes[0].has_data()


def test_runs_without_accuracy_are_counted_and_none_at_all_is_an_error():
    runs = make_runs_table((0.5, 0.9, 1.0))
    runs.loc[0, "reward_accuracy"] = np.nan

    figure = plot_accuracy(make_comparison(runs), model="m", data="d")
    assert "1 run without an accuracy not shown" in figure.get_supxlabel().replace("\n", " ")
    with pytest.raises(DpotoolError, match=r"no run's reward accuracy can be compared. Score the runs with"):
        plot_accuracy(make_comparison(runs.iloc[[0, 2]]), model="m", data="d")
