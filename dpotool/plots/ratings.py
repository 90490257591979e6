"""MT-Bench's radar: the mean grade of each run's answers by category, with intervals over questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dpotool.compare.ratings import read_rated
from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import COLORS, DASHES, MARKERS, make_figure, set_note, set_title, styled
from dpotool.plots.tradeoff import measure_bars
from dpotool.stats.intervals import Interval, format_interval
from dpotool.wording import capitalize

FEWEST_SPOKES = 3
LOWEST, HIGHEST = 1, 10
_APART = 0.05
"""Radians between the intervals of two runs on one spoke, so that they do not hide each other."""


def draw(scene: Scene) -> Drawing:
    """Draws the runs whose answers were graded; raises DpotoolError where there is none, or too few categories."""
    rated = read_rated(scene.everything)
    means = [f"{each['label']} {format_interval(each['overall'], '.2f')}" for each in rated]
    return Drawing(plot_ratings(rated), f"Mean grades by {rated[0]['judge']}, 1 to 10: {'; '.join(means)}.")


@styled
def plot_ratings(rated: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws a closed line per run over the categories that all of them have, with intervals on the spokes.

    Args:
        rated: summaries as `compare.ratings.summarize_ratings` makes them, with label and judge.

    Raises:
        DpotoolError: fewer than three categories.
    """
    categories = [name for name in rated[0]["by_category"] if all(name in each["by_category"] for each in rated)]
    if len(categories) < FEWEST_SPOKES:
        raise DpotoolError(
            "the ratings are of too few categories for a picture", expected=f"at least {FEWEST_SPOKES}",
            got=str(len(categories)), remedy="Pass `judge --bench mt-bench` a --questions file that has categories",
        )  # fmt: skip
    figure = make_figure(6.4, 6.2)
    axes: Any = figure.add_subplot(projection="polar", theta_offset=np.pi / 2, theta_direction=-1)
    angles = np.linspace(0, 2 * np.pi, len(categories), endpoint=False)
    for place, each in enumerate(rated):
        means = [Interval.read(each["by_category"][name]) for name in categories]
        shifted = angles + _APART * (place - (len(rated) - 1) / 2)
        color, values = COLORS[place % len(COLORS)], [mean.value for mean in means]
        axes.plot(
            [*shifted, shifted[0]], [*values, values[0]], marker=MARKERS[place % len(MARKERS)], color=color,
            linestyle=DASHES[place % len(DASHES)], linewidth=1.3, markersize=5, label=each["label"],
        )  # fmt: skip
        bars = np.hstack([measure_bars(mean) for mean in means])
        axes.errorbar(shifted, values, yerr=bars, fmt="none", ecolor=color, elinewidth=0.9, alpha=0.7)
    axes.set_xticks(angles, categories)
    axes.set_ylim(LOWEST - 1, HIGHEST)
    axes.set_yticks(range(2, HIGHEST + 1, 2))
    axes.set_rlabel_position(180 / len(categories))
    figure.legend(loc="outside upper right", ncols=min(3, len(rated)))
    counts = sorted({each["n_questions"] for each in rated})
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    set_title(figure, "Grades by category", f"judge: {rated[0]['judge']}", f"n = {n} questions")
    set_note(figure, f"{capitalize(rated[0]['caveat'])}. Means of grades from 1 to 10; 95 % intervals over "
             "questions, of which a category has few.")  # fmt: skip
    return figure
