"""The paper's main figure: how far training moved the likelihoods of chosen and rejected, and the margin it bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from dpotool.compare.scored_run import has_reference, split_scored
from dpotool.errors import DpotoolError
from dpotool.plots.theme import (
    CHOSEN,
    HATCHES,
    INK,
    MARGIN,
    REJECTED,
    choose_n_bins,
    describe_ns,
    describe_row,
    format_number,
    make_figure,
    set_note,
    set_title,
    styled,
)

COLUMNS = {
    "chosen_logps": ("log-likelihood of chosen (nats)", CHOSEN, HATCHES["chosen"]),
    "rejected_logps": ("log-likelihood of rejected (nats)", REJECTED, HATCHES["rejected"]),
    "reward_margins": ("reward margin (nats)", MARGIN, HATCHES["margin"]),
}
_REFERENCE_OF = {"chosen_logps": "ref_chosen_logps", "rejected_logps": "ref_rejected_logps"}
_CENTRAL = (0.5, 99.5)  # percentiles the axes span: a few very long completions would squeeze everything else
_HEADROOM = 1.25  # of the highest bar, for the value of the mean
_REFERENCE_DASH = (0, (3, 1.5))

Values = NDArray[np.float64]


@styled
def plot_displacement(
    tables: Mapping[str, pd.DataFrame], *, model: str, data: str, reference: str = "reference"
) -> Figure:
    """Draws distributions of chosen and rejected log-likelihood and reward margin, a row per model, reference first.

    The reference row comes from the `ref_*` columns of the first table that has them; the reference's margin is zero
    for every pair by definition, which its cell says instead of drawing a spike. Behind each model stands the outline
    of its own reference. x axes are shared down a column, heights too.

    Args:
        tables: label -> score table, in the order to show.
        model, data: for the title.
        reference: label of the reference row.

    Raises DpotoolError when a table has no scored pair.
    """
    scored = {label: _split(label, table) for label, table in tables.items()}
    with_reference = [label for label, (rows, _) in scored.items() if has_reference(rows)]
    n_rows = len(scored) + bool(with_reference)
    figure = make_figure(9.5, 1.5 + n_rows * (1.45 if n_rows <= 4 else 0.95))
    grid = figure.subplots(n_rows, 3, sharex="col", sharey="col", squeeze=False)
    bins = {name: _shared_bins([rows for rows, _ in scored.values()], name) for name in COLUMNS}
    if with_reference:
        _draw_reference_row(grid[0], reference, scored[with_reference[0]][0], bins)
    for axes_row, (label, (rows, n_excluded)) in zip(grid[n_rows - len(scored) :], scored.items(), strict=True):
        _label_row(axes_row[0], label, len(rows), n_excluded)
        for axes, name in zip(axes_row, COLUMNS, strict=True):
            _draw_cell(axes, rows, name, bins[name])
    _finish(grid, bins)
    set_title(figure, "Likelihood displacement", model, data, describe_ns([(len(r), n) for r, n in scored.values()]))
    set_note(figure, _describe_axes(scored, bins, with_reference))
    return figure


def _split(label: str, table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    rows, excluded = split_scored(table)
    if rows.empty:
        raise DpotoolError("no scored pair to draw", where=label, remedy="Its summary says why pairs were left out")
    return rows, sum(excluded.values())


def _values(rows: pd.DataFrame, name: str) -> Values:
    return rows[name].dropna().to_numpy(dtype=np.float64)


def _shared_bins(tables: list[pd.DataFrame], name: str) -> Values:
    """Bin edges over the central 99 % of all rows of a column, reference included, and over every mean."""
    names = [name, _REFERENCE_OF[name]] if name in _REFERENCE_OF else [name]
    groups = [values for rows in tables for each in names if len(values := _values(rows, each))]
    if not groups:
        return np.linspace(-1, 1, 13)
    ends = [*np.percentile(np.concatenate(groups), _CENTRAL), *(group.mean() for group in groups)]
    low, high = min(ends), max(ends)
    if name == "reward_margins":
        low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.04 * (high - low) or 1.0
    return np.linspace(low - pad, high + pad, choose_n_bins(max(len(group) for group in groups)) + 1)


def _draw_cell(axes: Axes, rows: pd.DataFrame, name: str, bins: Values) -> None:
    values = _values(rows, name)
    if not len(values):
        _say(axes, "no reference, no margin")
        return
    _fill(axes, values, name, bins)
    if name == "reward_margins":
        axes.axvline(0, color=INK, linewidth=0.8)
    elif len(reference := _values(rows, _REFERENCE_OF[name])):
        axes.hist(reference, bins=list(bins), histtype="step", color=INK, linewidth=0.9, linestyle=_REFERENCE_DASH)
        axes.axvline(reference.mean(), color=INK, linewidth=0.9, linestyle=_REFERENCE_DASH)
    _mark_mean(axes, float(values.mean()))


def _draw_reference_row(axes_row: NDArray[Any], label: str, rows: pd.DataFrame, bins: Mapping[str, Values]) -> None:
    _label_row(axes_row[0], label, len(rows), 0)
    for axes, name in zip(axes_row[:2], _REFERENCE_OF, strict=True):
        values = _values(rows, _REFERENCE_OF[name])
        _fill(axes, values, name, bins[name])
        _mark_mean(axes, float(values.mean()))
    axes_row[2].axvline(0, color=INK, linewidth=0.8)
    _say(axes_row[2], "0 for every pair, by definition")
    handles = [
        Line2D([], [], color=INK, linewidth=1.6, label="mean"),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=_REFERENCE_DASH, label="reference and its mean"),
    ]
    axes_row[2].legend(handles=handles, loc="lower right", fontsize=7.5, borderaxespad=0.2, labelspacing=0.3)


def _fill(axes: Axes, values: Values, name: str, bins: Values) -> None:
    _, color, hatch = COLUMNS[name]
    axes.hist(values, bins=list(bins), histtype="stepfilled", facecolor=color, alpha=0.35, edgecolor=color, hatch=hatch)
    axes.hist(values, bins=list(bins), histtype="step", color=color, linewidth=1.1)


def _mark_mean(axes: Axes, mean: float) -> None:
    """A line at the mean and its value beside it, on the side that has room."""
    axes.axvline(mean, color=INK, linewidth=1.6)
    low, high = axes.get_xlim()
    is_right = mean > low + 0.55 * (high - low)
    axes.annotate(
        format_number(mean),
        (mean, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_right else 4, 0),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top",
        fontweight="bold",
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def _say(axes: Axes, text: str) -> None:
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    axes.text(0.99, 0.93, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, style="italic", bbox=box)


def _label_row(axes: Axes, label: str, n: int, n_excluded: int) -> None:
    axes.set_ylabel(describe_row(label, n, n_excluded), rotation=0, ha="right", va="center", labelpad=8)


def _finish(grid: NDArray[Any], bins: Mapping[str, Values]) -> None:
    for axes_column, (name, (title, _, _)) in zip(grid.T, COLUMNS.items(), strict=True):
        axes_column[0].set_xlim(bins[name][0], bins[name][-1])
        tallest = max((axes.dataLim.y1 for axes in axes_column if axes.patches), default=1.0)
        axes_column[0].set_ylim(0, _HEADROOM * tallest)
        axes_column[-1].set_xlabel(title)
    for axes in grid.flat:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)


def _describe_axes(
    scored: Mapping[str, tuple[pd.DataFrame, int]], bins: Mapping[str, Values], with_reference: list[str]
) -> str:
    values = [(_values(rows, name), bins[name]) for rows, _ in scored.values() for name in COLUMNS]
    n_outside = sum(int(((v < b[0]) | (v > b[-1])).sum()) for v, b in values)
    n_all = sum(len(v) for v, _ in values)
    text = "Pairs per bin, thick line at the mean; bins, axes and heights are the same down a column."
    if n_outside:
        text += f" {n_outside:,} of {n_all:,} values lie beyond the axes and count in the means."
    means = [scored[label][0]["ref_chosen_logps"].mean() for label in with_reference]
    if means and not np.allclose(means, means[0], rtol=1e-6):
        text += f" The rows' references differ; the first row is that of {with_reference[0]}."
    return text
