"""Reward accuracy against lambda, as the difference from the baseline over the same pairs: what a smaller one costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpotool.compare.differences import Comparison
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    COLORS,
    DPO,
    INK,
    MARKERS,
    describe_ns,
    make_figure,
    percent,
    put_legend_above,
    ring_recommended,
    set_lambda_ticks,
    set_note,
    set_title,
    styled,
    wrap,
)
from dpotool.plots.tradeoff import Point, measure_bars, need_differences, read_points
from dpotool.stats.intervals import format_interval
from dpotool.wording import count

_METRIC = "reward_accuracy"


def draw(scene: Scene) -> Drawing:
    """Draws the scored runs against the baseline; raises DpotoolError where there is no difference to draw."""
    scene.need_runs()
    comparison = scene.comparison
    figure = plot_accuracy(comparison, **scene.title, recommended=scene.recommended)
    words = [
        f"{each.label}: {percent(each.run[_METRIC])}"
        + ("" if each.label == comparison.baseline else f", {format_interval(each.y, '+z.1f')} points")
        for each in read_points(comparison, _METRIC)
    ]
    text = f"Reward accuracy and its difference from {comparison.baseline}, runs by lambda."
    return Drawing(figure, f"{text} {'; '.join(words)}.")


@styled
def plot_accuracy(comparison: Comparison, *, model: str, data: str, recommended: str | None = None) -> Figure:
    """Draws differences with paired 95 % intervals: constant lambdas along an axis, all other runs beside them.

    Several runs of one lambda (seeds) are drawn each, and the line goes through their mean. The scale on the right has
    the accuracies themselves.

    Args:
        comparison: of several runs with one of them (compare.differences).
        model, data: for the title.
        recommended: label of the run to mark.

    Raises DpotoolError when no run's accuracy can be compared.
    """
    points = read_points(comparison, _METRIC)
    need_differences(comparison, len(points) > 1, _METRIC)
    constant = sorted((each for each in points if each.run["lambda"] == each.run["lambda"]), key=_lambda)
    others = [each for each in points if each.run["lambda"] != each.run["lambda"]]
    widths = [width for width, part in ((4.6, constant), (0.4 + 0.8 * len(others), others)) if part]
    figure = make_figure(max(4.6, sum(widths) + 1.4), 4.2)
    panels = list(figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0])
    panels[0].set_ylabel(f"reward accuracy, difference from {comparison.baseline} (points)")
    for axes in panels:
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    if constant:
        _draw_constant(panels[0], constant, recommended)
    if others:
        _draw_others(panels[-1], others, recommended)
    base = next(each.run[_METRIC] for each in points if each.label == comparison.baseline)
    _add_scale(panels[-1], 100 * float(base))
    set_title(figure, "Reward accuracy against λ", model, data, describe_ns(comparison.scored))
    n_missing = len(comparison.runs) - len(points)
    missing = f" {count(n_missing, 'run')} without an accuracy not shown." if n_missing else ""
    set_note(
        figure,
        f"Margins are unshifted and ties count as wrong. Bars: 95 % bootstrap intervals of the difference from "
        f"{comparison.baseline} over the same pairs.{missing}",
    )
    return figure


def _lambda(point: Point) -> float:
    return float(point.run["lambda"])


def _draw_constant(axes: Axes, points: Sequence[Point], recommended: str | None) -> None:
    lambdas = np.array([_lambda(each) for each in points])
    values = np.array([each.y.value for each in points])
    distinct = np.unique(lambdas)
    axes.plot(distinct, [values[lambdas == one].mean() for one in distinct], color=COLORS[0], linewidth=1.2, zorder=2)
    for each in points:
        is_dpo = _lambda(each) == DPO
        style = ("*", COLORS[1], "λ = 1 (DPO)") if is_dpo else ("o", COLORS[0], "DPO-Shift, constant λ")
        _draw_point(axes, _lambda(each), each, *style, recommended)
    axes.set_xlabel("λ, factor on the rejected reward")
    set_lambda_ticks(axes, lambdas)
    put_legend_above(axes, 3)


def _draw_others(axes: Axes, points: Sequence[Point], recommended: str | None) -> None:
    for position, each in enumerate(points):
        style = MARKERS[1 + position % (len(MARKERS) - 1)], COLORS[2 + position % (len(COLORS) - 2)]
        _draw_point(axes, position, each, *style, "", recommended)
    axes.set_xticks(range(len(points)), [wrap(each.label, 12, 4) for each in points], rotation=0, fontsize=7.5)
    axes.set_xlim(-0.6, len(points) - 0.4)
    axes.set_xlabel("other runs")


def _draw_point(
    axes: Axes, x: float, point: Point, marker: str, color: str, name: str, recommended: str | None
) -> None:
    is_named = name in axes.get_legend_handles_labels()[1]
    axes.errorbar(
        x, point.y.value, yerr=measure_bars(point.y), fmt=marker, color=color,
        markersize=11 if marker == "*" else 6, markeredgecolor=INK, markeredgewidth=0.6, capsize=3, elinewidth=1.1,
        label=name if name and not is_named else None, zorder=3,
    )  # fmt: skip
    if point.label == recommended:
        ring_recommended(axes, x, point.y.value)


def _add_scale(axes: Axes, base: float) -> None:
    """A scale on the right with the accuracies themselves, in percent."""
    right = axes.secondary_yaxis(
        "right", functions=(lambda points: np.add(points, base), lambda value: np.subtract(value, base))
    )
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    right.set_ylabel("reward accuracy (margin > 0)")
