"""The trade-off: mean log-likelihood of chosen completions against reward accuracy or margin, a point per run."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.plots.labels import label_points
from dpotool.plots.theme import (
    COLORS,
    INK,
    MARKERS,
    MUTED,
    count,
    describe_ns,
    make_figure,
    put_legend_above,
    set_note,
    set_title,
    styled,
    wrap,
)

_X = "chosen_logps"
AGAINST = {
    "reward_accuracy": ("reward accuracy", "reward accuracy (margin > 0)"),
    "reward_margins": ("reward margin", "mean reward margin (nats)"),
}


@styled
def plot_tradeoff(runs: pd.DataFrame, *, model: str, data: str, against: str = "reward_accuracy") -> Figure:
    """Draws one point per run with both 95 % intervals, and the Pareto front: no run is better in both.

    Args:
        runs: runs table (results.comparison).
        model, data: for the title.
        against: what stands on the y axis, `reward_accuracy` or `reward_margins`.

    Raises DpotoolError for another `against`, or when no run has both numbers.
    """
    if against not in AGAINST:
        raise DpotoolError(f"cannot draw against {against!r}", remedy=suggest_nearest(against, AGAINST))
    known = runs[runs[[_X, against]].notna().all(axis=1)].reset_index(drop=True)
    if known.empty:
        raise DpotoolError(f"no run has both {_X} and {against}", remedy="Score the runs with a reference first")
    x, y = (known[name].to_numpy(dtype=np.float64) for name in (_X, against))
    figure = make_figure(7.0, 5.0)
    axes = figure.add_subplot()
    on_front = is_on_front(x, y)
    _draw_front(axes, x[on_front], y[on_front])
    _draw_runs(axes, known, against)
    axes.set(xlabel="mean log-likelihood of chosen (nats), higher: less displaced", ylabel=AGAINST[against][1])
    if against == "reward_accuracy":
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.grid()
    axes.set_axisbelow(True)
    counts = list(zip(known["n"].astype(int), known["n_excluded"].astype(int), strict=True))
    set_title(figure, f"Chosen likelihood against {AGAINST[against][0]}", model, data, describe_ns(counts))
    set_note(figure, _describe(len(known), int(on_front.sum()), len(runs) - len(known)))
    # the legend says that dots are DPO-Shift
    labels = [wrap(str(label).removeprefix("DPO-Shift "), 26, 2) for label in known["label"]]
    label_points(axes, x, y, labels, avoid=_front_corners(x[on_front], y[on_front]))
    return figure


def is_on_front(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no other point is at least as high in both x and y and higher in one."""
    is_higher = (x[None] >= x[:, None]) & (y[None] >= y[:, None]) & ((x[None] > x[:, None]) | (y[None] > y[:, None]))
    return np.logical_not(is_higher.any(axis=1))


def _draw_front(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    if len(x) > 1:
        corners = _front_corners(x, y)
        axes.plot(*corners.T, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=2, label="Pareto front")


def _front_corners(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of the stairs under which every point is beaten by one on the front, (2 n - 1, 2), from the left.

    Between two runs on the front the best known is the right one's y, not the left one's: that one's x is too low.
    """
    order = np.argsort(x)
    x, y = np.repeat(x[order], 2)[:-1], np.repeat(y[order], 2)[1:]
    return np.column_stack([x, y])


def _draw_runs(axes: Axes, runs: pd.DataFrame, against: str) -> None:
    """DPO as a star, constant lambdas as dots from light to dark, every other run in a shape of its own."""
    is_dpo = (runs["loss"] == "dpo") | (runs["lambda"] == 1)
    is_constant = runs["lambda"].notna() & ~is_dpo
    _draw_group(axes, runs[is_constant], against, "o", COLORS[0], "DPO-Shift, constant λ")
    _draw_group(axes, runs[is_dpo], against, "*", COLORS[1], "DPO")
    for position, (_, run) in enumerate(runs[~is_dpo & ~is_constant].iterrows()):
        marker, color = MARKERS[1 + position % (len(MARKERS) - 1)], COLORS[2 + position % (len(COLORS) - 2)]
        _draw_group(axes, run.to_frame().T, against, marker, color, None)
    put_legend_above(axes, 3)


def _draw_group(axes: Axes, runs: pd.DataFrame, against: str, marker: str, color: str, label: str | None) -> None:
    if not len(runs):
        return
    values = {name: runs[name].to_numpy(dtype=np.float64) for name in (_X, against)}
    spread = {
        name: np.nan_to_num(np.abs(runs[[f"{name}_low", f"{name}_high"]].to_numpy(dtype=np.float64).T - values[name]))
        for name in values
    }
    axes.errorbar(
        values[_X], values[against], xerr=spread[_X], yerr=spread[against], fmt="none", ecolor=color, elinewidth=0.7,
        alpha=0.55, zorder=2,
    )  # fmt: skip
    axes.plot(
        values[_X], values[against], marker, color=color, markersize=12 if marker == "*" else 7, markeredgecolor=INK,
        markeredgewidth=0.6, label=label, zorder=4,
    )  # fmt: skip


def _describe(n_runs: int, n_on_front: int, n_missing: int) -> str:
    text = (
        f"{count(n_runs, 'run')}, {n_on_front} on the Pareto front by point estimate. Bars: 95 % bootstrap intervals."
    )
    return text + (f" {count(n_missing, 'run')} without both numbers not shown." if n_missing else "")
