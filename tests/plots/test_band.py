from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation
from synthetic_frames import make_theory_frame

from dpotool.errors import DpotoolError
from dpotool.plots.band import GRID, count_pairs, plot_band


def frame_of(inner, chosen, rejected) -> pd.DataFrame:
    """A theory table with these <W, L>, |W|^2 and |L|^2."""
    inner, chosen, rejected = (np.asarray(values, dtype=float) for values in (inner, chosen, rejected))
    with np.errstate(divide="ignore", invalid="ignore"):
        return make_theory_frame(len(inner)).assign(
            grad_inner_product=inner,
            chosen_grad_sq_norm=chosen,
            rejected_grad_sq_norm=rejected,
            band_low=np.maximum(0, inner / rejected),
            band_high=np.where(inner > 0, chosen / inner, np.inf),
        )


FOUR = frame_of([1, 2, -1, 1], [2, 1, 1, 4], [2, 4, 1, 1])
"""Bands [0.5, 2], [0.5, 0.5], [0, inf) and [1, 4]."""


def lines_of(axes) -> dict:
    return {line.get_label(): line for line in axes.lines}


def test_pairs_are_counted_where_the_band_holds_f():
    """At f = 0.3 only the third pair's rejected falls; at 0.7 and 1 the second's chosen falls, at 0.7 the fourth's
    rejected still rises."""
    shares = count_pairs(FOUR)

    places = [int(np.argmin(np.abs(GRID - f))) for f in (0.3, 0.7, 1.0)]
    assert [shares["chosen"][place].value for place in places] == [1.0, 0.75, 0.75]
    assert [shares["rejected"][place].value for place in places] == [0.25, 0.75, 1.0]
    assert [shares["both"][place].value for place in places] == [0.25, 0.5, 0.75]


def test_a_step_on_the_pair_moves_what_the_shares_say():
    """d log pi(chosen) = |W|^2 - f <W, L> >= 0 and d log pi(rejected) = <W, L> - f |L|^2 <= 0, for every f."""
    frame = make_theory_frame(200)
    inner, chosen, rejected = (
        frame[name].to_numpy()[:, None]
        for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm")
    )
    is_up, is_down = chosen - GRID * inner >= 0, inner - GRID * rejected <= 0

    shares = count_pairs(frame)

    for name, holds in {"chosen": is_up, "rejected": is_down, "both": is_up & is_down}.items():
        np.testing.assert_allclose([share.value for share in shares[name]], holds.mean(axis=0))
        assert all(share.ci_low <= share.value <= share.ci_high for share in shares[name])


def test_three_curves_above_the_centres_with_dpo_and_the_recommended_lambda_marked():
    frame = make_theory_frame(300)

    figure = plot_band(frame, model="demo", data="test", n_excluded=2, recommended=0.75)

    axes, below = figure.axes
    curves = lines_of(axes)
    np.testing.assert_allclose(
        curves["both: f lies in the pair's band"].get_ydata(), [share.value for share in count_pairs(frame)["both"]]
    )
    assert len({str(curve.get_linestyle()) + str(curve._dash_pattern) for curve in axes.lines[:3]}) == 3
    assert len(axes.collections) == 3, "an interval around each"
    named = [child.get_text() for child in axes.get_children() if isinstance(child, Annotation)]
    assert named == ["recommended λ = 0.75", "DPO"]
    assert {0.75, 1.0} <= {line.get_xdata()[0] for line in below.lines}
    centres = np.sqrt(frame["chosen_grad_sq_norm"] / frame["rejected_grad_sq_norm"])
    assert lines_of(below)["median"].get_xdata()[0] == pytest.approx(np.median(centres))
    assert "demo, test, n = 300 pairs, 2 left out" in figure.get_suptitle()


def test_the_note_says_the_shares_under_dpo_and_at_best_and_how_many_centres_are_not_shown():
    frame = frame_of([1, 1, 0.5], [100, 1, 1], [1, 4, 1])
    """Bands [1, 100], [0.25, 1] and [0.5, 2]; centres 10, 0.5 and 1."""

    note = plot_band(frame, model="m", data="d").get_supxlabel().replace("\n", " ")

    assert "Both hold for 100.0 %" in note and "for the most, 100.0 %" in note and "at f = 1." in note
    assert "Median centre 1 [" in note
    assert "1 centre beyond the axis" in note


def test_no_text_runs_out_of_the_picture_or_into_another():
    figure = plot_band(make_theory_frame(100), model="m", data="d", recommended=0.95)

    figure.canvas.draw()
    boxes = [c.get_window_extent() for c in figure.axes[0].get_children() if isinstance(c, Annotation)]
    assert len(boxes) == 2
    assert not boxes[0].overlaps(boxes[1])
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(("inner", "chosen", "rejected"), [([1], [2], [2]), ([0], [0], [0]), ([0], [1], [0])])
def test_one_pair_can_be_drawn_even_without_gradients(inner, chosen, rejected):
    frame = frame_of(inner, chosen, rejected).fillna({"band_low": 0.0})

    figure = plot_band(frame, model="m", data="d")
    figure.canvas.draw()

    assert "n = 1 pair" in figure.get_suptitle()


def test_nothing_to_draw_is_one_line():
    frame = make_theory_frame(1).assign(u=np.nan)

    with pytest.raises(DpotoolError, match=r"no pair with a band to draw. Run `dpotool theory-gap` again"):
        plot_band(frame, model="m", data="d")
