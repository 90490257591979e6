from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from synthetic_frames import make_theory_frame

from dpotool.errors import DpotoolError
from dpotool.plots.theory import plot_theory, put_in_words


def frame_of(u, v) -> pd.DataFrame:
    return make_theory_frame(len(u)).assign(u=u, v=v)


def corners_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_signs_are_counted_in_each_quadrant():
    figure = plot_theory(frame_of([1.0, 2, 3, -1], [-1.0, -2, 3, -1]), model="demo", data="test", n_excluded=2)

    main, top, right, _ = figure.axes
    assert corners_of(main) == [
        "u < 0, v < 0\n1 pair, 25.0 %",
        "u < 0, v > 0\n0 pairs, cannot occur",
        "u > 0, v < 0\n2 pairs, 50.0 %",
        "u > 0, v > 0\n1 pair, 25.0 %",
    ]
    assert "demo, test, n = 4 pairs, 2 left out" in figure.get_suptitle()
    note = figure.get_supxlabel().replace("\n", " ")
    assert "u > 0: 75.0 % (paper 71.4 %); v < 0: 75.0 % (paper 81.7 %)" in note
    assert len(top.patches) == len(right.patches) == 2
    assert top.patches[1].get_hatch()


def test_every_pair_is_a_point_in_the_shape_of_its_case():
    frame = make_theory_frame(200)

    main, *_, legend = plot_theory(frame, model="m", data="d").axes

    assert sum(len(points.get_offsets()) for points in main.collections) == 200
    counts = frame["entanglement"].value_counts()
    texts = [text.get_text() for text in legend.get_legend().get_texts()]
    assert texts[0] == f"chosen up, rejected down: {counts.iloc[0]} ({counts.iloc[0] / 2:.1f} %)"
    assert len(texts) == 3
    assert len({tuple(points.get_paths()[0].vertices.ravel()) for points in main.collections}) == 3


def test_axes_are_logarithmic_only_where_the_values_span_powers_of_ten():
    wide = plot_theory(make_theory_frame(200), model="m", data="d").axes[0]
    narrow = plot_theory(frame_of([1.0, 2, 3], [-1.0, -2, -3]), model="m", data="d").axes[0]

    assert (wide.get_xscale(), wide.get_yscale()) == ("symlog", "symlog")
    assert (narrow.get_xscale(), narrow.get_yscale()) == ("linear", "linear")


@pytest.mark.parametrize(
    "frame", [make_theory_frame(200), frame_of([1.0, 2, 3], [-1.0, -2, -3])], ids=["wide", "narrow"]
)
def test_all_points_and_both_signs_are_inside_the_axes(frame):
    axes = plot_theory(frame, model="m", data="d").axes[0]

    for limits, values in ((axes.get_xlim(), frame["u"]), (axes.get_ylim(), frame["v"])):
        assert limits[0] < min(values.min(), 0)
        assert limits[1] > max(values.max(), 0)


def test_counts_in_the_corners_hide_no_point():
    figure = plot_theory(make_theory_frame(300), model="m", data="d")

    figure.canvas.draw()
    main = figure.axes[0]
    points = np.vstack([main.transData.transform(np.asarray(p.get_offsets())) for p in main.collections])
    assert len(points) == 300
    for text in main.texts:
        box = text.get_window_extent()
        assert not any(box.contains(*point) for point in points)


def test_tick_labels_do_not_run_into_each_other():
    figure = plot_theory(make_theory_frame(5000, seed=2), model="m", data="d")

    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    labels = [t for t in figure.axes[0].get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert len(boxes) >= 5
    assert all(set(label.get_text()) <= set("0123456789−⁻⁰¹²³⁴⁵⁶⁷⁸⁹") for label in labels), "formulas are not set"
    assert all(one.x1 <= two.x0 for one, two in itertools.pairwise(boxes))


def test_pairs_that_are_not_finite_or_exactly_zero_are_counted():
    frame = frame_of([1.0, 0.0, np.nan], [-1.0, -2.0, -3.0])

    figure = plot_theory(frame, model="m", data="d")

    assert "n = 2 pairs, 1 left out" in figure.get_suptitle()
    assert "1 pair with u or v exactly 0" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize(("u", "v"), [([3.0], [-2.0]), ([0.0], [0.0])])
def test_one_pair_can_be_drawn(u, v):
    figure = plot_theory(frame_of(u, v), model="m", data="d")
    figure.canvas.draw()

    assert "n = 1 pair" in figure.get_suptitle()


def test_nothing_to_draw_is_one_line():
    with pytest.raises(DpotoolError, match="no pair with finite u and v to draw"):
        plot_theory(frame_of([np.nan], [1.0]), model="m", data="d")


def test_the_words_for_the_figure_hold_its_shares() -> None:
    """Of four usable pairs two have u > 0 and v < 0, one each the other possible signs; the fifth is not finite."""
    frame = make_theory_frame(5).assign(u=[1.0, 2.0, 3.0, -1.0, float("nan")], v=[-1.0, -2.0, 3.0, -1.0, 1.0])
    frame["entanglement"] = ["both_down", "both_down", "chosen_up_rejected_down", "both_up", "both_up"]
    assert put_in_words(frame) == (
        "Of 4 pairs: u < 0, v < 0 25.0 %, u < 0, v > 0 0.0 %, u > 0, v < 0 50.0 %, u > 0, v > 0 25.0 %. "
        "One DPO step on the pair alone: both down 50.0 %, chosen up, rejected down 25.0 %, both up 25.0 %."
    )
