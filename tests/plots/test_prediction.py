from __future__ import annotations

import numpy as np
import pytest
from synthetic_frames import make_prediction_frame

from dpotool.errors import DpotoolError
from dpotool.plots.prediction import plot_prediction
from dpotool.theory.summary import summarize_prediction

INTERVAL = {"value": 0.9, "ci_low": 0.8, "ci_high": 0.95}
SUMMARY = {side: dict.fromkeys(("correlation", "slope", "same_sign"), INTERVAL) for side in ("chosen", "rejected")}
"""What the drawing reads of a summary, for tests that do not look at the numbers: bootstraps take their time."""


def line_of(axes, label: str):
    return next(line for line in axes.lines if line.get_label() == label)


def test_a_point_per_pair_measured_over_predicted_on_one_scale():
    frame = make_prediction_frame(200)

    figure = plot_prediction(frame, model="demo", data="test", about=SUMMARY | {"n_excluded": 3})

    chosen, rejected = figure.axes
    for axes, side in ((chosen, "chosen"), (rejected, "rejected")):
        expected = frame[[f"predicted_{side}_change", f"{side}_change"]].to_numpy()
        np.testing.assert_allclose(axes.collections[0].get_offsets(), expected)
    assert chosen.get_xlim() == chosen.get_ylim() == rejected.get_xlim() == rejected.get_ylim()
    paths = [axes.collections[0].get_paths()[0].vertices for axes in figure.axes]
    assert len(paths[0]) != len(paths[1]), "another shape"
    assert "demo, test, n = 200 pairs, 3 left out" in figure.get_suptitle()


def test_the_fit_is_least_squares_and_its_numbers_are_the_summarys():
    frame = make_prediction_frame(40)
    found = summarize_prediction(frame)["chosen"]

    axes = plot_prediction(frame, model="m", data="d").axes[0]

    slope, intercept = np.polyfit(frame["predicted_chosen_change"], frame["chosen_change"], 1)
    x, y = line_of(axes, "least squares").get_data()
    np.testing.assert_allclose(y, slope * np.asarray(x) + intercept)
    title = axes.get_title(loc="left")
    assert f"slope {found['slope']['value']:.2f} [{found['slope']['ci_low']:.2f}," in title
    assert f"correlation {found['correlation']['value']:.2f} [" in title
    mean = line_of(axes, "mean over pairs").get_xydata()[0]
    np.testing.assert_allclose(mean, [frame["predicted_chosen_change"].mean(), frame["chosen_change"].mean()])


def test_a_summary_is_believed_and_tells_where_from_and_to():
    frame = make_prediction_frame(50)
    chosen = SUMMARY["chosen"] | {"slope": {"value": -0.5, "ci_low": -0.6, "ci_high": -0.4}}
    about = SUMMARY | {"chosen": chosen, "from": "builtin:demo", "to": "runs/dpo", "at": "middle", "distance": 0.035}

    figure = plot_prediction(frame, model="m", data="d", about=about)

    assert "slope −0.50 [−0.60, −0.40]" in figure.axes[0].get_title(loc="left")
    note = figure.get_supxlabel().replace("\n", " ")
    assert "From builtin:demo to runs/dpo, gradients taken halfway between them." in note
    assert "moved by 3.5 % of their norm" in note


def test_axes_differ_where_a_square_would_be_mostly_empty():
    axes = plot_prediction(make_prediction_frame(60, slope=0.02), model="m", data="d", about=SUMMARY).axes[0]

    assert np.ptp(axes.get_xlim()) > 3 * np.ptp(axes.get_ylim())


def test_many_points_are_small_pale_and_one_image():
    few, many = (make_prediction_frame(n) for n in (100, 3500))

    looks = [plot_prediction(frame, model="m", data="d", about=SUMMARY).axes[0].collections[0] for frame in (few, many)]

    assert looks[0].get_sizes()[0] > looks[1].get_sizes()[0] and looks[0].get_alpha() > looks[1].get_alpha()
    assert [look.get_rasterized() for look in looks] == [False, True]


def test_titles_notes_and_axes_keep_apart():
    about = {"from": "a/very-long-name-of-a-model" * 3, "to": "runs/another-long-name" * 3, "at": "to", "distance": 0.1}

    figure = plot_prediction(make_prediction_frame(60), model="m", data="d", about=SUMMARY | about)

    figure.canvas.draw()
    title, note = (text.get_window_extent() for text in (figure._suptitle, figure._supxlabel))
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert note.y1 <= box.y0 and box.y1 <= title.y0


def test_pairs_that_are_not_finite_are_counted_and_the_rest_summarised_again():
    frame = make_prediction_frame(30)
    frame.loc[0, "chosen_change"] = np.nan

    figure = plot_prediction(frame, model="m", data="d", about=SUMMARY)

    assert "slope 0.90" not in figure.axes[0].get_title(loc="left")
    assert "n = 29 pairs, 1 left out" in figure.get_suptitle()


def test_two_pairs_have_no_correlation():
    figure = plot_prediction(make_prediction_frame(2), model="m", data="d")

    figure.canvas.draw()
    assert "no correlation: too few pairs" in figure.axes[0].get_title(loc="left")
    assert all(line.get_label() != "least squares" for line in figure.axes[0].lines)


def test_nothing_to_draw_is_one_line():
    with pytest.raises(DpotoolError, match=r"no pair with finite changes to draw. Run `dpotool predict` again"):
        plot_prediction(make_prediction_frame(3).iloc[:0], model="m", data="d")
