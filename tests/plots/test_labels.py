from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dpotool.plots.labels import label_points
from dpotool.plots.theme import make_figure


def place(x, y, labels, **kwargs):
    figure = make_figure(6, 4)
    axes = figure.add_subplot()
    axes.plot(x, y, "o")
    axes.margins(0.2)
    annotations = label_points(axes, x, y, labels, **kwargs)
    figure.canvas.draw()
    return axes, annotations, [Text.get_window_extent(annotation) for annotation in annotations]


@pytest.mark.parametrize("seed", range(5))
def test_labels_run_neither_into_each_other_nor_into_points_nor_out_of_the_axes(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 11))

    axes, _, boxes = place(x, y, [f"DPO-Shift λ={i / 10:g}" for i in range(11)])

    assert len(boxes) == 11
    for one, two in itertools.combinations(boxes, 2):
        assert not one.overlaps(two)
    for box, point in itertools.product(boxes, axes.transData.transform(np.column_stack([x, y]))):
        assert not box.contains(*point)
    for box in boxes:
        assert axes.bbox.x0 - 1 <= box.x0 < box.x1 <= axes.bbox.x1 + 1
        assert axes.bbox.y0 - 1 <= box.y0 < box.y1 <= axes.bbox.y1 + 1


def test_a_lone_point_has_its_label_beside_it_without_a_line():
    _, (annotation,), _ = place([0.0], [0.0], ["DPO"])

    assert annotation.get_text() == "DPO"
    assert not annotation.arrow_patch.get_visible()


def test_a_label_nearer_to_another_point_gets_a_line_to_its_own():
    x = np.concatenate([np.linspace(-1, 1, 21), [0.0]])
    y = np.concatenate([np.zeros(21), [10.0]])

    _, annotations, _ = place(x, y, [f"run {i}" for i in range(22)])

    assert any(annotation.arrow_patch.get_visible() for annotation in annotations[:21])
    assert not annotations[21].arrow_patch.get_visible()


def test_a_line_to_avoid_is_kept_clear():
    def covers(axes, box) -> bool:
        (left, y), (right, _) = axes.transData.transform([(-1.0, 0.05), (1.0, 0.05)])
        return box.overlaps(Bbox([[left, y], [right, y]]))

    axes, _, free = place([0.0, 1.0], [0.0, 1.0], ["label", "other"])
    assert covers(axes, free[0])

    axes, _, boxes = place([0.0, 1.0], [0.0, 1.0], ["label", "other"], avoid=[(-1.0, 0.05), (1.0, 0.05)])
    assert not covers(axes, boxes[0])
