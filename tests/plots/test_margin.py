from __future__ import annotations

import numpy as np
import pytest
from synthetic_frames import make_score_frame, make_scored_run

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.plots.margin import plot_margin
from dpotool.stats.bootstrap import bootstrap_interval


def side_text(axes) -> str:
    return axes.texts[0].get_text()


def test_a_ridge_per_model_with_its_share_above_zero_and_interval():
    frames = {"DPO": make_score_frame(80, seed=1, gap=2), "shift": make_score_frame(80, seed=2, gap=1, n_excluded=3)}

    figure = plot_margin([ScoredRun(frame, label) for label, frame in frames.items()], model="demo", data="test")

    assert [axes.get_ylabel() for axes in figure.axes] == ["DPO\nn = 80", "shift\nn = 80 (3 left out)"]
    assert "demo, test, n = 80 pairs each, 3 left out in all" in figure.get_suptitle()
    for axes, frame in zip(figure.axes, frames.values(), strict=True):
        share = bootstrap_interval(frame["reward_margins"].dropna() > 0, "share")
        assert f"{100 * share.value:.1f} % above 0" in side_text(axes)
        assert f"[{100 * share.ci_low:.1f}, {100 * share.ci_high:.1f}]" in side_text(axes)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_zero_is_a_line_and_what_lies_below_it_is_hatched():
    axes = plot_margin([make_scored_run(n=80, gap=1)], model="m", data="d").axes[0]

    assert any(np.allclose(line.get_xdata(), 0) for line in axes.lines)
    right, left = axes.patches[:2]
    assert (right.get_hatch(), left.get_hatch()) == ("", "/////")
    heights = right.get_xy()
    assert heights[heights[:, 1] > 0, 0].min() >= 0
    heights = left.get_xy()
    assert heights[heights[:, 1] > 0, 0].max() <= 1e-9


def test_ties_are_counted_and_drawn_on_the_wrong_side():
    frame = make_score_frame(20)
    frame["reward_margins"] = [0.0, 0.0, -1.0, *[1.0] * 17]

    axes = plot_margin([ScoredRun(frame, "DPO")], model="m", data="d").axes[0]

    assert "85.0 % above 0" in side_text(axes)
    assert side_text(axes).endswith("2 ties")
    left = axes.patches[1].get_xy()
    assert left[(left[:, 0] < 0) & (left[:, 0] > -0.5), 1].max() == pytest.approx(2 / 20)


def test_the_triangle_is_at_the_mean():
    frame = make_score_frame(30)

    axes = plot_margin([ScoredRun(frame, "DPO")], model="m", data="d").axes[0]

    (triangle,) = [line for line in axes.lines if line.get_marker() == "^"]
    assert triangle.get_xdata()[0] == pytest.approx(frame["reward_margins"].mean())


@pytest.mark.parametrize("n", [1, 2])
def test_very_few_pairs_can_be_drawn(n):
    figure = plot_margin([make_scored_run(n=n)], model="m", data="d")

    figure.canvas.draw()
    assert f"n = {n} pair" in figure.get_suptitle()


def test_a_table_without_reference_is_one_line():
    with pytest.raises(DpotoolError, match=r"llama: no reward margins to draw. Score it again with --reference"):
        plot_margin([make_scored_run("llama", 5, has_reference=False)], model="m", data="d")
