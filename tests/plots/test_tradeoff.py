from __future__ import annotations

import itertools

import numpy as np
import pytest
from control_runs import draw, write_dpo_with_controls
from matplotlib.text import Annotation, Text
from scored_runs import write_scored_run
from synthetic_frames import make_comparison, make_runs_table

from dpotool.compare.findings import find_out
from dpotool.errors import DpotoolError
from dpotool.plots.tradeoff import is_on_front, plot_tradeoff, read_lines


@pytest.fixture
def dpo(tmp_path):
    return write_dpo_with_controls(tmp_path / "dpo")


def test_the_front_is_what_nothing_beats_in_both():
    """(1,3) and (3,1) are ends, (2,2) between; (1,2) is beaten by (1,3) in y alone, (2,1) by (2,2), (0,0) by all."""
    x, y = np.array([1.0, 3, 2, 1, 2, 0]), np.array([3.0, 1, 2, 2, 1, 0])

    assert is_on_front(x, y).tolist() == [True, True, True, False, False, False]


def test_equal_runs_are_both_on_the_front():
    assert is_on_front(np.ones(2), np.ones(2)).tolist() == [True, True]


def test_the_front_is_a_stair_that_claims_nothing_no_run_reached():
    """Between DPO at x = 0, y = 0 and the run at x = 1, y = -20 points the best known y is -20."""
    runs = make_runs_table((0.5, 1.0)).assign(chosen_logps=[2.0, 1.0], reward_accuracy=[0.1, 0.3])

    (axes,) = plot_tradeoff(make_comparison(runs), model="m", data="d").axes

    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    np.testing.assert_allclose(front.get_xydata(), [[0, 0], [0, -20], [1, -20]], atol=1e-12)


@pytest.mark.parametrize(("against", "scale"), [("reward_accuracy", 100), ("reward_margins", 1)])
def test_a_point_and_a_label_per_run_with_paired_intervals_of_both_differences(against, scale):
    runs = make_runs_table((0.5, 0.75, 0.9, 1.0), ("DPO-Shift λ=0.75→1 ↑", "IPO"))
    comparison = make_comparison(runs)

    figure = plot_tradeoff(comparison, model="demo", data="test", against=against, recommended="IPO")

    (axes,) = figure.axes
    marked = [line for line in axes.lines if line.get_marker() not in ("None", "|", "_", "") and len(line.get_xdata())]
    points = sorted({tuple(np.round(point, 9)) for line in marked for point in line.get_xydata().tolist()})
    base = runs.set_index("label").loc["DPO"]
    expected = [
        (x - base["chosen_logps"], scale * (y - base[against]))
        for x, y in zip(runs["chosen_logps"], runs[against], strict=True)
    ]
    np.testing.assert_allclose(points, sorted(expected), atol=1e-8)
    labels = [child.get_text() for child in axes.get_children() if isinstance(child, Annotation)]
    assert sorted(labels) == ["DPO", "IPO", "λ=0.5", "λ=0.75", "λ=0.75→1 ↑", "λ=0.9"]
    assert "demo, test, n = 300 pairs" in figure.get_suptitle()
    x_bar, y_bar = (bars.get_segments()[0] for bars in axes.containers[0].lines[2])
    first = comparison.differences["DPO-Shift λ=0.5"]
    found = [first.metrics[name].difference for name in ("chosen_logps", against)]
    ends = [[each.ci_low, each.ci_high] for each in found]
    np.testing.assert_allclose(x_bar[:, 0], ends[0])
    np.testing.assert_allclose(y_bar[:, 1], scale * np.array(ends[1]))


def test_the_recommended_run_is_ringed_and_the_accuracy_it_may_cost_is_shaded():
    """A loss of 5 points is allowed: down to -5 points the ground is shaded."""
    runs = make_runs_table((0.9, 1.0)).assign(chosen_logps=[-60.0, -70.0], reward_accuracy=[0.78, 0.8])
    options = {"recommended": "DPO-Shift λ=0.9", "allowed_loss": 5.0}

    (axes,) = plot_tradeoff(make_comparison(runs), model="m", data="d", **options).axes

    [ring] = [line for line in axes.lines if line.get_markersize() == 17]
    np.testing.assert_allclose(ring.get_xydata(), [[10, -2]], atol=1e-9)
    assert "recommended" in [text.get_text() for text in axes.get_legend().get_texts()]
    [band] = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((-5, 0))


def test_labels_of_eleven_runs_do_not_run_into_each_other():
    runs = make_runs_table(tuple(np.arange(0.5, 1.01, 0.05).round(2).tolist()))

    figure = plot_tradeoff(make_comparison(runs), model="m", data="d")

    figure.canvas.draw()
    boxes = [Text.get_window_extent(c) for c in figure.axes[0].get_children() if isinstance(c, Annotation)]
    assert len(boxes) == 11
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


def test_one_run_alone_has_no_difference():
    with pytest.raises(DpotoolError, match=r"DPO: one run alone has no difference to draw. Name at least two"):
        plot_tradeoff(make_comparison(make_runs_table((1.0,))), model="m", data="d")


def test_runs_without_both_numbers_are_counted_and_none_at_all_is_an_error():
    runs = make_runs_table((0.5, 0.9, 1.0))
    runs.loc[0, "reward_accuracy"] = np.nan

    figure = plot_tradeoff(make_comparison(runs), model="m", data="d")
    assert "1 run without both numbers not shown" in figure.get_supxlabel().replace("\n", " ")
    with pytest.raises(DpotoolError, match=r"no run's reward accuracy can be compared. Score the runs with"):
        plot_tradeoff(make_comparison(runs.iloc[[0, 2]]), model="m", data="d")


def test_an_unknown_axis_names_the_known_ones():
    with pytest.raises(DpotoolError, match=r"cannot draw against 'margin'.*Known: reward_accuracy, reward_margins"):
        plot_tradeoff(make_comparison(), model="m", data="d", against="margin")


def test_controls_are_curves_that_end_at_the_baseline_and_for_margins_begin_at_the_start(dpo, tmp_path):
    """Scaled back by .6 and .8 the chosen change by -1 and -2.2 nats, under DPO by -4; stopped at a quarter by -5."""
    write_scored_run(tmp_path / "shift", frame=draw(4, -2.2, 3.6), loss="shift", lambda_=0.9)
    found = find_out([str(dpo.path), str(tmp_path / "shift")])
    for against, n_points in (("reward_accuracy", 3), ("reward_margins", 4)):
        lines = {line.name: line for line in read_lines(found.comparison, found.controls, against)}
        assert set(lines) == {"DPO scaled back", "DPO stopped early", "λ, trained"}
        scaled = lines["DPO scaled back"]
        assert len(scaled.x) == n_points and (scaled.x[-1], scaled.y[-1]) == (0, 0)
        np.testing.assert_allclose(scaled.x[-3:-1], [3, 1.8], atol=0.1)
        np.testing.assert_allclose(lines["DPO stopped early"].x[-2], -1, atol=0.1)
    assert scaled.y[0] == pytest.approx(-0.4, abs=0.02), "beta 0.1 times the margin of 4 nats that the start lacks"
    (axes,) = plot_tradeoff(found.comparison, model="m", data="d", controls=found.controls).axes
    assert {"DPO scaled back", "DPO stopped early"} <= {line.get_label() for line in axes.lines}


def test_blends_of_other_ends_lie_on_another_line(tmp_path):
    """Two between lambda 1 and 0.5, and two between the start and something else; each line joins its own two."""
    ends = {"near": ("dpo", "half"), "far": ("m", "half")}
    runs = [write_scored_run(tmp_path / "dpo", frame=draw(1, -4.0, 4.0), loss="dpo")]
    for name, (first, second) in ends.items():
        for weight in (0.25, 0.75):
            change = -3.0 + weight if name == "near" else weight
            point = tmp_path / f"{name}-{weight}"
            runs.append(write_scored_run(point, frame=draw(2, change, 3.0), blend=(first, second, weight, None)))
    found = find_out([str(run.path) for run in runs])

    lines = read_lines(found.comparison, found.controls, "reward_margins")

    assert [line.name for line in lines] == ["blends", "blends"]
    np.testing.assert_allclose([line.x for line in lines], [[1.25, 1.75], [4.25, 4.75]], atol=0.15)
    (axes,) = plot_tradeoff(found.comparison, model="m", data="d").axes
    assert [line.get_label() for line in axes.lines].count("blends") == 1, "once in the legend"
