"""Change of the chosen against change of the rejected log-likelihood, a point per pair: which rose and which fell.

Pairs above the diagonal have a positive margin; below the horizontal axis the chosen completion lost likelihood, which
is displacement. The lower left quadrant, both down, is the one DPO is known for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpotool.compare.scored_run import has_reference, split_scored
from dpotool.errors import DpotoolError
from dpotool.plots.theme import (
    CHOSEN,
    INK,
    MUTED,
    REJECTED,
    describe_ns,
    make_figure,
    set_note,
    set_title,
    styled,
    wrap,
)

QUADRANTS = {
    "chosen up, rejected down": (1, -1),
    "both up": (1, 1),
    "both down": (-1, -1),
    "chosen down, rejected up": (-1, 1),
}
"""Name -> sign of the change of chosen, of rejected."""
_CENTRAL = (0.5, 99.5)
_MANY = 3000  # points from which they are drawn small, and as one image in vector formats


def count_quadrants(table: pd.DataFrame) -> dict[str, int]:
    """Returns how many pairs lie in each quadrant, and under `on an axis` those with a change of exactly zero."""
    chosen, rejected = _changes(split_scored(table)[0])
    counts = {
        name: int(((np.sign(chosen) == up) & (np.sign(rejected) == right)).sum())
        for name, (up, right) in QUADRANTS.items()
    }
    return counts | {"on an axis": len(chosen) - sum(counts.values())}


@styled
def plot_quadrants(tables: Mapping[str, pd.DataFrame], *, model: str, data: str) -> Figure:
    """Draws a panel per model on common axes, with the share of pairs in each quadrant in its corner.

    Args:
        tables: label -> score table with reference, in the order to show.
        model, data: for the title.

    Raises DpotoolError when a table has no reference or no pair.
    """
    scored = {label: split_scored(table) for label, table in tables.items()}
    for label, (rows, _) in scored.items():
        if not has_reference(rows):
            raise DpotoolError("no change to draw", where=label, remedy="Score it again with --reference")
    n_columns = min(3, len(scored))
    n_rows = math.ceil(len(scored) / n_columns)
    figure = make_figure(max(4.6, 3.2 * n_columns), 1.2 + 3.0 * n_rows)
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(scored) :]:
        axes.set_visible(False)
    limits = _find_limits([rows for rows, _ in scored.values()])
    n_outside = 0
    for axes, (label, (rows, _)) in zip(grid.flat, scored.items(), strict=False):
        n_outside += _draw_pairs(axes, rows, limits)
        axes.set_title(wrap(label, 34, 2), fontsize=9)
        _write_counts(axes, tables[label], len(rows))
    for position, axes in enumerate(grid.flat[: len(scored)]):
        axes.tick_params(labelbottom=position + n_columns >= len(scored))  # nothing below
        if position + n_columns >= len(scored):
            axes.set_xlabel("change of log π(rejected) (nats)")
    for axes in grid[:, 0]:
        axes.set_ylabel("change of log π(chosen) (nats)")
    counts = [(len(rows), sum(excluded.values())) for rows, excluded in scored.values()]
    set_title(figure, "Which way the pairs moved", model, data, describe_ns(counts))
    beyond = f" {n_outside:,} points lie beyond the axes and count in the corners." if n_outside else ""
    set_note(figure, f"Dots: margin above 0, crosses: margin 0 or below. Dashed: both change alike, margin 0.{beyond}")
    return figure


def _changes(rows: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    chosen, rejected = (
        (rows[f"{side}_logps"] - rows[f"ref_{side}_logps"]).to_numpy(dtype=np.float64)
        for side in ("chosen", "rejected")
    )
    return chosen, rejected


def _find_limits(tables: list[pd.DataFrame]) -> tuple[tuple[float, float], tuple[float, float]]:
    """x and y limits that hold the central 99 % of all pairs, zero, and some room for the corners' texts."""
    changes = [_changes(rows) for rows in tables]
    limits = []
    for side, pad in ((1, 0.06), (0, 0.18)):
        values = np.concatenate([change[side] for change in changes])
        low, high = np.percentile(values, _CENTRAL)
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        span = (high - low) or 1.0
        low, high = min(low, high - span, -0.12 * span), max(high, low + span, 0.12 * span)
        limits.append((low - pad * span, high + pad * span))
    return limits[0], limits[1]


def _draw_pairs(axes: Axes, rows: pd.DataFrame, limits: tuple[tuple[float, float], tuple[float, float]]) -> int:
    """Draws a model's pairs; returns how many lie beyond the limits."""
    chosen, rejected = _changes(rows)
    (left, right), (bottom, top) = limits
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    is_right = chosen > rejected
    size = 4 if len(rows) > _MANY else 14
    for mask, marker, color in ((is_right, "o", CHOSEN), (~is_right, "x", REJECTED)):
        axes.scatter(
            rejected[mask], chosen[mask], s=size, marker=marker, color=color, alpha=0.5,
            linewidths=0.8 * (marker == "x"), zorder=3, rasterized=len(rows) > _MANY,
        )  # fmt: skip
    return int(((rejected < left) | (rejected > right) | (chosen < bottom) | (chosen > top)).sum())


def _write_counts(axes: Axes, table: pd.DataFrame, n_pairs: int) -> None:
    counts = count_quadrants(table)
    for name, (up, right) in QUADRANTS.items():
        text = f"{name.replace(', ', ',' + chr(10))}\n{100 * counts[name] / n_pairs:.1f} %"
        axes.text(
            0.98 if right > 0 else 0.02, 0.98 if up > 0 else 0.02, text, transform=axes.transAxes, fontsize=7.5,
            ha="right" if right > 0 else "left", va="top" if up > 0 else "bottom", zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
