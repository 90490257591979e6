from __future__ import annotations

import numpy as np
import pytest
from synthetic_frames import make_gap_summary

from dpotool.errors import DpotoolError
from dpotool.plots.gap import plot_gap


def titles_of(figure) -> list[str]:
    return [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes if axes.get_title(loc="left")]


def text_of(axes) -> str:
    return "\n".join(text.get_text() for text in axes.texts)


def test_a_column_per_kind_a_row_per_gap_and_each_its_own_axis():
    figure = plot_gap(make_gap_summary(), model="demo", data="test")

    assert titles_of(figure) == ["paper", "self-step", "batch", "measured"]
    assert len(figure.axes) == 8
    heights = [axes.get_ylim()[1] for axes in figure.axes[:4]]
    assert heights[0] > 5 * heights[1] > 25 * heights[2]
    assert "demo, test, n = 60 pairs, 2 left out" in figure.get_suptitle()


def test_points_and_bars_are_the_summarys_and_the_line_ends_at_dpo():
    """At the reference g1 of the paper is (1 - f) 1600: 800, 80 and, for DPO, 0."""
    axes = plot_gap(make_gap_summary((0.95, 0.5)), model="m", data="d").axes[0]

    points, bars = axes.containers[0].lines[0], axes.containers[0].lines[2][0]
    np.testing.assert_allclose(points.get_xydata(), [[0.5, 800], [0.95, 80]])
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [640, 1120])
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(line.get_xydata(), [[0.5, 800], [0.95, 80], [1, 0]])


def test_measured_gaps_are_those_of_the_smallest_rate_beside_the_prediction_for_the_same_pairs():
    summary = make_gap_summary()

    figure = plot_gap(summary, model="m", data="d")

    axes = figure.axes[3]
    points = next(line for line in axes.lines if line.get_marker() == "D")
    ladders = summary["verification"]["optimizers"]["sgd"]
    np.testing.assert_allclose(
        points.get_ydata(), [ladders[f]["g1"]["ladder"][-1]["measured"] for f in ("0.5", "0.95")]
    )
    (line,) = [line for line in axes.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(line.get_ydata(), [4, 0.4, 0])
    assert "12 pairs" in axes.get_title(loc="left")
    assert "learning rate 1.0·10⁻⁴" in figure.get_supxlabel().replace("\n", " ")


def test_sizes_and_disagreeing_signs_are_written_down():
    figure = plot_gap(make_gap_summary(batch_sign=-1), model="m", data="d")

    assert text_of(figure.axes[0]) == "800 at f = 0.5"
    assert text_of(figure.axes[1]) == "80.0 at f = 0.5\nsign unlike the paper's:\n0.0 % of pairs"
    assert text_of(figure.axes[2]) == (
        "−3.00 at f = 0.5\nmean: opposite sign\nto the paper's\nsign unlike the paper's:\n6.6 % of pairs"
    )
    assert "opposite" not in text_of(figure.axes[6]), "g2 agrees"


@pytest.mark.parametrize("batch_sign", [1, -1])
def test_text_hides_no_point_and_stays_in_its_panel(batch_sign):
    shifts = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05)

    figure = plot_gap(make_gap_summary(shifts, batch_sign=batch_sign), model="m", data="d")

    figure.canvas.draw()
    for axes in figure.axes:
        box = axes.texts[0].get_window_extent()
        for line in axes.lines[:3]:
            inside = [box.contains(*axes.transData.transform(point)) for point in line.get_xydata()]
            assert not any(inside)
        assert axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1


def test_without_real_steps_there_is_no_measured_column():
    assert titles_of(plot_gap(make_gap_summary(is_verified=False), model="m", data="d"))[-1] == "batch"


def test_gaps_without_intervals_have_no_bars():
    summary = make_gap_summary()
    for kinds in summary["gaps"].values():
        kinds["batch"]["g1"] |= {"ci_low": None, "ci_high": None}

    segments = plot_gap(summary, model="m", data="d").axes[2].containers[0].lines[2][0].get_segments()

    assert segments
    assert all(np.ptp(segment[:, 1]) == 0 for segment in segments)


@pytest.mark.parametrize("shifts", [(), (1.0,)])
def test_no_gap_is_one_line(shifts):
    with pytest.raises(DpotoolError, match=r"no gap between DPO-Shift and DPO to draw. Run .* --lambdas other than 1"):
        plot_gap(make_gap_summary(shifts), model="m", data="d")
