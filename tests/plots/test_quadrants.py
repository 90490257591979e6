from __future__ import annotations

import pytest
from synthetic_frames import make_score_frame, make_scored_run

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.plots.quadrants import count_quadrants, plot_quadrants


def make_run(changes: list[tuple[float, float]]) -> ScoredRun:
    """Pairs whose chosen and rejected log-likelihoods changed by so much."""
    frame = make_score_frame(len(changes))
    for column, side in enumerate(("chosen", "rejected")):
        frame[f"ref_{side}_logps"] = 0.0
        frame[f"{side}_logps"] = [change[column] for change in changes]
    return ScoredRun(frame, "DPO")


def test_pairs_are_counted_by_hand():
    counts = count_quadrants(make_run([(1, -1), (-1, -2), (-3, -2), (2, 1), (-1, 1), (-1, -1)]))

    assert counts == {
        "chosen up, rejected down": 1,
        "both up": 1,
        "both down": 3,
        "chosen down, rejected up": 1,
        "on an axis": 0,
    }


def test_a_change_of_zero_lies_in_no_quadrant():
    assert count_quadrants(make_run([(0, -1)]))["on an axis"] == 1


def test_a_panel_per_run_on_the_same_axes_with_shares_in_the_corners_and_the_recommended_one_marked():
    runs = [make_scored_run("DPO", 80, displacement=-20), make_scored_run("half", 80, seed=2, displacement=1)]

    figure = plot_quadrants(runs, model="m", data="d", recommended="half")

    panels = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["DPO", "half\nrecommended"]
    assert panels[0].get_xlim() == panels[1].get_xlim() and panels[0].get_ylim() == panels[1].get_ylim()
    share = 100 * count_quadrants(runs[0])["both down"] / 80
    assert f"both down\n{share:.1f} %" in [text.get_text() for text in panels[0].texts]
    n_drawn = sum(len(points.get_offsets()) for points in panels[0].collections)
    assert n_drawn == 80


def test_the_plus_stands_at_the_mean_change():
    (axes,) = plot_quadrants([make_run([(1, -1), (-3, -5)])], model="m", data="d").axes

    [plus] = [line for line in axes.lines if line.get_marker() == "P"]
    assert plus.get_xydata().tolist() == [[-3.0, -1.0]]


def test_without_a_reference_nothing_moved():
    with pytest.raises(DpotoolError, match=r"DPO: no change to draw\. Score it again with --reference"):
        plot_quadrants([make_scored_run(n=20, has_reference=False)], model="m", data="d")
