from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.text import Annotation, Text
from synthetic_frames import make_runs_table

from dpotool.errors import DpotoolError
from dpotool.plots.tradeoff import is_on_front, plot_tradeoff


def test_the_front_is_what_nothing_beats_in_both():
    """(1,3) and (3,1) are ends, (2,2) between; (1,2) is beaten by (1,3) in y alone, (2,1) by (2,2), (0,0) by all."""
    x, y = np.array([1.0, 3, 2, 1, 2, 0]), np.array([3.0, 1, 2, 2, 1, 0])

    assert is_on_front(x, y).tolist() == [True, True, True, False, False, False]


def test_equal_runs_are_both_on_the_front():
    assert is_on_front(np.ones(2), np.ones(2)).tolist() == [True, True]


def test_the_front_is_a_stair_that_claims_nothing_no_run_reached():
    """Between the runs at x = 1, y = 3 and x = 2, y = 1 the best known y is 1: the first is not as far right."""
    runs = make_runs_table((0.5, 1.0)).assign(chosen_logps=[2.0, 1.0], reward_accuracy=[0.1, 0.3])

    (axes,) = plot_tradeoff(runs, model="m", data="d").axes

    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert front.get_xydata().tolist() == [[1.0, 0.3], [1.0, 0.1], [2.0, 0.1]]


@pytest.mark.parametrize("against", ["reward_accuracy", "reward_margins"])
def test_a_point_and_a_label_per_run_with_both_intervals(against):
    runs = make_runs_table((0.5, 0.75, 0.9, 1.0), ("DPO-Shift λ=0.75→1 ↑", "IPO"))

    figure = plot_tradeoff(runs, model="demo", data="test", against=against)

    (axes,) = figure.axes
    marked = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    points = sorted(tuple(point) for line in marked for point in line.get_xydata().tolist())
    np.testing.assert_allclose(points, sorted(zip(runs["chosen_logps"], runs[against], strict=True)))
    labels = [child.get_text() for child in axes.get_children() if isinstance(child, Annotation)]
    assert sorted(labels) == ["DPO", "IPO", "λ=0.5", "λ=0.75", "λ=0.75→1 ↑", "λ=0.9"]
    assert len({line.get_marker() for line in marked}) == 4
    assert "demo, test, n = 300 pairs" in figure.get_suptitle()
    first = axes.containers[0].lines[2]
    (x_bar, y_bar) = (bars.get_segments()[0] for bars in first)
    assert x_bar[:, 0] == pytest.approx(runs.loc[0, ["chosen_logps_low", "chosen_logps_high"]].tolist())
    assert y_bar[:, 1] == pytest.approx(runs.loc[0, [f"{against}_low", f"{against}_high"]].tolist())


def test_labels_of_eleven_runs_do_not_run_into_each_other():
    runs = make_runs_table(tuple(np.arange(0.5, 1.01, 0.05).round(2).tolist()))

    figure = plot_tradeoff(runs, model="m", data="d")

    figure.canvas.draw()
    boxes = [Text.get_window_extent(c) for c in figure.axes[0].get_children() if isinstance(c, Annotation)]
    assert len(boxes) == 11
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


def test_one_run_has_no_front_to_draw():
    (axes,) = plot_tradeoff(make_runs_table((1.0,)), model="m", data="d").axes

    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["DPO"]


def test_runs_without_both_numbers_are_counted_and_none_at_all_is_an_error():
    runs = make_runs_table((0.5, 1.0))
    runs.loc[0, "reward_accuracy"] = np.nan

    assert "1 run without both numbers not shown" in plot_tradeoff(runs, model="m", data="d").get_supxlabel()
    with pytest.raises(DpotoolError, match=r"no run has both chosen_logps and reward_accuracy. Score the runs"):
        plot_tradeoff(runs.iloc[:1], model="m", data="d")


def test_an_unknown_axis_names_the_known_ones():
    with pytest.raises(DpotoolError, match=r"cannot draw against 'margin'.*Known: reward_accuracy, reward_margins"):
        plot_tradeoff(make_runs_table(), model="m", data="d", against="margin")
