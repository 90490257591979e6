"""Labels beside points that do not overlap each other or points, and stay within the axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from dpotool.plots.theme import MUTED

_DISTANCES = (9, 16, 26, 38, 54, 72)  # points from the marker, nearest first
_ANGLES = np.deg2rad([35, 145, 325, 215, 90, 270, 0, 180])
_UNMISTAKABLE = 1.6  # a label needs no line to its point if every other point is this much further away
_FAR = 30  # points from which it gets one anyway
_POINT_SIZE = 12  # room a marker takes, in points


def label_points(
    axes: Axes, x: ArrayLike, y: ArrayLike, labels: Sequence[str], *, avoid: ArrayLike | None = None
) -> list[Annotation]:
    """Places each label where it is nearest to its point without touching another label, a point or a line.

    Greedy, from the crowded points outwards. A label that is far from its point, or not clearly nearest to it, gets a
    thin line to it; one that finds no free place takes the one that overlaps least. Call it last: it needs the layout
    and the limits as they will be.

    Args:
        x, y: where the points are, in data units.
        avoid: corners of a line of horizontal and vertical pieces to keep clear of, (n_corners, 2), in data units.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    canvas = cast(FigureCanvasAgg, axes.figure.canvas)
    canvas.draw()
    renderer = canvas.get_renderer()
    points = axes.transData.transform(np.column_stack([x, y]))  # (n_points, 2), pixels
    scale = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    half = _POINT_SIZE * scale / 2
    taken = [Bbox.from_extents(*(point - half), *(point + half)) for point in points]
    if avoid is not None:
        corners = axes.transData.transform(np.asarray(avoid, dtype=np.float64))
        taken += [Bbox([np.minimum(a, b) - 1, np.maximum(a, b) + 1]) for a, b in itertools.pairwise(corners)]
    annotations: dict[int, Annotation] = {}
    for index in _crowded_first(points):
        annotation = _annotate(axes, (float(x[index]), float(y[index])), labels[index])
        size = Text.get_window_extent(annotation, renderer)  # the annotation's own would hold its line too
        offset, box = _find_place(points[index], size.width, size.height, scale, taken, axes.bbox)
        distances = [_distance(point, box) for point in points]
        others = min((d for i, d in enumerate(distances) if i != index), default=np.inf)
        is_clear = distances[index] < _FAR * scale and others > _UNMISTAKABLE * distances[index]
        _move(annotation, offset / scale, is_clear)
        taken.append(box)
        annotations[index] = annotation
    return [annotations[index] for index in range(len(labels))]


def _crowded_first(points: np.ndarray) -> list[int]:
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return [int(i) for i in np.argsort(distances.min(axis=1), kind="stable")]


def _annotate(axes: Axes, point: tuple[float, float], text: str) -> Annotation:
    line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
    annotation = axes.annotate(
        text, point, xytext=(0, 0), textcoords="offset points", fontsize=8, ha="center", va="center", zorder=6,
        arrowprops=line, annotation_clip=False, path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip
    annotation.set_in_layout(False)  # or the axes would change size, and with it what is free
    return annotation


def _find_place(
    point: np.ndarray, width: float, height: float, scale: float, taken: list[Bbox], frame: Bbox
) -> tuple[np.ndarray, Bbox]:
    """Returns the offset of the label's centre from its point, in pixels, and the box it takes."""
    best: tuple[float, np.ndarray, Bbox] | None = None
    for distance in _DISTANCES:
        for angle in _ANGLES:
            direction = np.array([np.cos(angle), np.sin(angle)])
            reach = direction * (distance * scale) + np.sign(np.round(direction, 6)) * [width / 2, height / 2]
            centre = point + reach
            box = Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)
            overlap = sum(_overlap(box, other) for other in taken) + 3 * (box.width * box.height - _overlap(box, frame))
            if overlap < 1e-6:
                return reach, box
            if best is None or overlap < best[0]:
                best = overlap, reach, box
    assert best is not None
    return best[1], best[2]


def _overlap(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return common.width * common.height if common is not None else 0.0


def _distance(point: np.ndarray, box: Bbox) -> float:
    nearest = np.clip(point, box.min, box.max)
    return float(np.hypot(*(point - nearest)))


def _move(annotation: Annotation, offset: np.ndarray, is_clear: bool) -> None:
    annotation.xyann = (float(offset[0]), float(offset[1]))
    if annotation.arrow_patch is not None:
        annotation.arrow_patch.set_visible(not is_clear)
