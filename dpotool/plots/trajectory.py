"""How the mean log-likelihoods of chosen and rejected moved while training, from metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from dpotool.errors import DpotoolError
from dpotool.plots.theme import CHOSEN, INK, REJECTED, count, make_figure, set_note, set_title, styled, wrap

_SIDES: dict[str, dict[str, Any]] = {
    "chosen": {"color": CHOSEN, "marker": "o", "linestyle": "-"},
    "rejected": {"color": REJECTED, "marker": "s", "linestyle": (0, (5, 2))},
}
_SMOOTH_SHARE = 0.1


@styled
def plot_trajectory(
    metrics: Mapping[str, pd.DataFrame], *, model: str, data: str, n_eval_pairs: int | None = None
) -> Figure:
    """Draws `logps/chosen` and `logps/rejected` over optimiser steps, a panel per run, all on the same axes.

    Training batches are other pairs at every step: their raw means are drawn faint, a moving average over them bold.
    Evaluations (`eval_logps/...`) are of the same pairs every time: points joined by a line. Where the run was
    evaluated before its first step, dotted lines mark where it started from.

    Args:
        metrics: label -> the rows of one run's metrics.jsonl.
        model, data: for the title.
        n_eval_pairs: pairs in the evaluation set, for the title.

    A run that logged neither is named below the panels. Raises DpotoolError when none logged any.
    """
    without = [label for label, rows in metrics.items() if not _has_logps(rows)]
    if len(without) == len(metrics):
        raise DpotoolError("no logps/chosen logged", where=without[0], remedy="Only preference losses log it")
    metrics = {label: rows for label, rows in metrics.items() if label not in without}
    n_columns = min(3, len(metrics))
    n_rows = math.ceil(len(metrics) / n_columns)
    figure = make_figure(max(7.0, 3.3 * n_columns), 1.3 + (3.6 if len(metrics) == 1 else 2.3) * n_rows)
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(metrics) :]:
        axes.set_visible(False)
    for axes, (label, rows) in zip(grid.flat, metrics.items(), strict=False):
        _draw_run(axes, rows)
        axes.set_title(wrap(label, 38, 2), fontsize=9)
    for position, axes in enumerate(grid.flat[: len(metrics)]):
        axes.tick_params(labelbottom=position + n_columns >= len(metrics))  # nothing below
    for axes in grid[-1]:
        axes.set_xlabel("optimiser step")
    grid[0, 0].xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # shared by all; there are no half steps
    for axes in grid[:, 0]:
        axes.set_ylabel("mean log-likelihood (nats)")
    n_logged = sum(len(rows) for rows in metrics.values())
    n = f"n = {n_eval_pairs:,} evaluated pairs" if n_eval_pairs else f"n = {count(n_logged, 'logged row')}"
    set_title(figure, "Likelihoods while training", model, data, n)
    not_shown = f" Not shown, as no logps/chosen logged: {', '.join(without)}." if without else ""
    set_note(figure, _describe(list(metrics.values())) + not_shown)
    return figure


def _has_logps(rows: pd.DataFrame) -> bool:
    return any(len(_series(rows, f"{prefix}logps/chosen")) for prefix in ("", "eval_"))


def _series(rows: pd.DataFrame, name: str) -> pd.Series:
    """One logged number over steps, without the rows that do not have it."""
    if name not in rows or "step" not in rows:
        return pd.Series(dtype=np.float64)
    known = rows[["step", name]].apply(pd.to_numeric, errors="coerce").dropna()
    return known.set_index("step")[name].sort_index()


def _smooth(raw: pd.Series) -> pd.Series:
    """Moving average over a tenth of the logged rows, centred; shorter at the ends."""
    return raw.rolling(max(1, round(_SMOOTH_SHARE * len(raw))), center=True, min_periods=1).mean()


def _draw_run(axes: Axes, rows: pd.DataFrame) -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    for side, style in _SIDES.items():
        raw, evaluated = _series(rows, f"logps/{side}"), _series(rows, f"eval_logps/{side}")
        if len(raw):
            smooth = _smooth(raw)
            axes.plot(raw.index, raw, color=style["color"], linewidth=0.6, alpha=0.35, zorder=2)
            axes.plot(smooth.index, smooth, color=style["color"], linestyle=style["linestyle"], linewidth=1.7, zorder=3)
        if len(evaluated):
            axes.plot(
                evaluated.index, evaluated, color=INK, markerfacecolor=style["color"], marker=style["marker"],
                markersize=5, markeredgewidth=0.6, linewidth=0.7, linestyle=style["linestyle"], zorder=4,
            )  # fmt: skip
            if evaluated.index[0] == 0:  # evaluated before the first step
                axes.axhline(evaluated.iloc[0], color=style["color"], linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=1)
    _name_lines(axes, rows)


def _name_lines(axes: Axes, rows: pd.DataFrame) -> None:
    """Writes chosen and rejected where their lines end, the higher one above its line, the lower one below."""
    ends = {}
    for side in _SIDES:
        line = _series(rows, f"eval_logps/{side}")
        if line.empty:
            line = _smooth(_series(rows, f"logps/{side}"))
        if len(line):
            ends[side] = (float(line.index[-1]), float(line.iloc[-1]))
    highest = max(ends.values(), key=lambda end: end[1], default=None)
    for side, end in ends.items():
        is_upper = end == highest
        axes.annotate(
            side, end, xytext=(0, 6 if is_upper else -6), textcoords="offset points", ha="right",
            va="bottom" if is_upper else "top", color=_SIDES[side]["color"], fontweight="bold", fontsize=8.5, zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _describe(runs: list[pd.DataFrame]) -> str:
    parts = []
    if any(len(_series(rows, "logps/chosen")) for rows in runs):
        parts.append("Faint: means over training batches, other pairs at every step; bold: their moving average.")
    evaluated = [series for rows in runs if len(series := _series(rows, "eval_logps/chosen"))]
    if evaluated:
        parts.append("Points: evaluations, the same pairs every time.")
    if any(series.index[0] == 0 for series in evaluated):
        parts.append("Dotted: where training started.")
    return " ".join(parts)
