"""Distributions of the reward margin, a ridge per model: how much of each lies above zero, which is reward accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpotool.compare.scored_run import split_scored
from dpotool.errors import DpotoolError
from dpotool.plots.theme import (
    INK,
    MARGIN,
    MUTED,
    REJECTED,
    choose_n_bins,
    count,
    describe_ns,
    describe_row,
    make_figure,
    set_note,
    set_title,
    styled,
)
from dpotool.stats.bootstrap import Interval, bootstrap_shares, read_clusters

_CENTRAL = (0.5, 99.5)


@styled
def plot_margin(tables: Mapping[str, pd.DataFrame], *, model: str, data: str) -> Figure:
    """Draws the reward margins of each score table over one axis, with the share above zero and its 95 % interval.

    What lies below zero (pairs the policy ranks wrongly) is hatched; a tie, a margin of exactly zero, counts as wrong.

    Args:
        tables: label -> score table with reference, in the order to show.
        model, data: for the title.

    Raises DpotoolError when a table has no margins.
    """
    margins = {label: _margins(label, table) for label, table in tables.items()}
    pooled = np.concatenate([values for values, *_ in margins.values()])
    edges = _edges(pooled, max(len(values) for values, *_ in margins.values()))
    n_rows = len(margins)
    figure = make_figure(7.5, 1.5 + n_rows * (1.0 if n_rows <= 4 else 0.62))
    grid = figure.subplots(n_rows, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (label, (values, n_excluded, share)) in zip(grid, margins.items(), strict=True):
        _draw_ridge(axes, values, edges)
        _describe_row(axes, label, values, n_excluded, share)
    grid[0].set_xlim(edges[0], edges[-1])
    grid[0].set_ylim(0, 1.12 * max(axes.dataLim.y1 for axes in grid))
    grid[-1].set_xlabel("reward margin, β · (change of chosen − change of rejected), nats")
    set_title(figure, "Reward margins", model, data, describe_ns([(len(v), n) for v, n, _ in margins.values()]))
    n_outside = int(((pooled < edges[0]) | (pooled > edges[-1])).sum())
    beyond = f" {n_outside:,} of {len(pooled):,} values lie beyond the axis." if n_outside else ""
    set_note(figure, "Share of pairs per bin; triangle at the mean; brackets are 95 % bootstrap intervals." + beyond)
    return figure


def _margins(label: str, table: pd.DataFrame) -> tuple[NDArray[np.float64], int, Interval]:
    """Margins, how many pairs were left out, and the share above 0; pairs of one prompt are drawn together."""
    rows, excluded = split_scored(table)
    rows = rows[rows["reward_margins"].notna()]
    values = rows["reward_margins"].to_numpy(dtype=np.float64)
    if not len(values):
        raise DpotoolError("no reward margins to draw", where=label, remedy="Score it again with --reference")
    clusters = read_clusters(rows) if "prompt_id" in rows else None
    return values, sum(excluded.values()), bootstrap_shares({"": values > 0}, clusters=clusters)[""]


def _edges(pooled: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Bin edges over the central 99 % of all margins, one of them exactly at zero."""
    low, high = np.percentile(pooled, _CENTRAL)
    low, high = min(low, 0.0), max(high, 0.0)
    width = (high - low) / choose_n_bins(n) or 0.1
    return width * np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 2)


def _draw_ridge(axes: Axes, values: NDArray[np.float64], edges: NDArray[np.float64]) -> None:
    weights = np.full(len(values), 1 / len(values))
    for is_right, color, hatch in ((True, MARGIN, ""), (False, REJECTED, "/////")):
        side = (values > 0) == is_right
        # a tie at exactly zero would fall into the bin to the right of it
        drawn = np.minimum(values[side], values[side] if is_right else -1e-12 * (edges[1] - edges[0]))
        axes.hist(
            drawn, bins=list(edges), weights=weights[side], histtype="stepfilled", facecolor=color, alpha=0.4,
            edgecolor=color, hatch=hatch,
        )  # fmt: skip
    axes.hist(values, bins=list(edges), weights=weights, histtype="step", color=INK, linewidth=0.9)
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.plot(values.mean(), 0.02, marker="^", color=INK, markersize=7, transform=axes.get_xaxis_transform(), zorder=5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _describe_row(axes: Axes, label: str, values: NDArray[np.float64], n_excluded: int, share: Interval) -> None:
    n_ties = int((values == 0).sum())
    axes.set_ylabel(describe_row(label, len(values), n_excluded), rotation=0, ha="right", va="center", labelpad=6)
    text = f"{share.value:.1%} above 0\n[{share.ci_low:.1%}, {share.ci_high:.1%}]"
    text += f"\n{count(n_ties, 'tie')}" if n_ties else ""
    axes.annotate(
        text.replace("%", " %"), (1.0, 0.5), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
        ha="left", va="center", fontsize=8, color=MUTED if share.value < 0.5 else INK,
    )  # fmt: skip
