from __future__ import annotations

import numpy as np
import pytest
from synthetic_frames import make_score_frame, make_scored_run

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.plots.displacement import measure_changes, plot_displacement


def make_run(chosen: list[float], rejected: list[float], label: str = "DPO") -> ScoredRun:
    """Pairs whose log-likelihoods changed by so much."""
    frame = make_score_frame(len(chosen))
    for side, changes in (("chosen", chosen), ("rejected", rejected)):
        frame[f"ref_{side}_logps"], frame[f"{side}_logps"] = 0.0, changes
    return ScoredRun(frame, label)


def heights_of(patch) -> np.ndarray:
    return patch.get_xy()[:, 1]


def test_chosen_stands_above_the_line_rejected_hangs_below_and_the_means_are_said():
    """Chosen changed by -3, -1, +1, mean -1, two of three fell; rejected by -6, -4, -2, mean -4, all fell."""
    run = make_run([-3, -1, 1], [-6, -4, -2])

    (axes,) = plot_displacement([run], model="m", data="d").axes

    above, below = axes.patches
    assert heights_of(above).min() == 0 < heights_of(above).max() == pytest.approx(1 / 3)
    assert heights_of(below).max() == 0 > heights_of(below).min()
    chosen, rejected = (text.get_text() for text in axes.texts)
    assert chosen.startswith("chosen −1.00 [") and chosen.endswith("fell on 66.7 %")
    assert rejected.startswith("rejected −4.00 [") and rejected.endswith("fell on 100.0 %")


def test_means_carry_their_intervals_over_pairs():
    run = make_scored_run(n=80)

    (axes,) = plot_displacement([run], model="m", data="d").axes

    for side, bars in zip(("chosen", "rejected"), axes.containers[:2], strict=True):
        ((low, _), (high, _)) = bars.lines[2][0].get_segments()[0]
        mean = measure_changes(run)[side]
        assert mean.value == pytest.approx((run.table[f"{side}_logps"] - run.table[f"ref_{side}_logps"]).mean())
        assert (low, high) == pytest.approx((mean.ci_low, mean.ci_high))


def test_rows_share_their_axes_and_the_recommended_one_is_marked():
    runs = [make_scored_run("DPO", 60), make_scored_run("shift", 60, displacement=-1)]

    figure = plot_displacement(runs, model="demo", data="test", recommended="shift")

    assert [axes.get_ylabel() for axes in figure.axes] == ["DPO", "shift\nrecommended"]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    assert "demo, test, n = 60 pairs" in figure.get_suptitle()


def test_what_lies_beyond_the_axis_is_counted():
    run = make_run([-500.0, *[-1.0] * 999], [-1.0] * 1000)

    note = plot_displacement([run], model="m", data="d").get_supxlabel().replace("\n", " ")

    assert "1 of 2,000 values lie beyond the axis and count in the means." in note


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_pairs_can_be_drawn(n):
    figure = plot_displacement([make_scored_run(n=n)], model="m", data="d")

    figure.canvas.draw()
    assert f"n = {n} pair" in figure.get_suptitle()


def test_without_a_reference_there_is_no_change():
    with pytest.raises(DpotoolError, match=r"DPO: no change to draw\. Score it again with --reference"):
        plot_displacement([make_scored_run(n=20, has_reference=False)], model="m", data="d")
