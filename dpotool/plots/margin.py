"""Distributions of the reward margin, a ridge per model: how much of each lies above zero, which is reward accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    INK,
    MARGIN,
    MUTED,
    REJECTED,
    choose_n_bins,
    describe_ns,
    format_number,
    join_rows,
    label_row,
    make_figure,
    percent,
    set_note,
    set_title,
    styled,
)
from dpotool.stats.bootstrap import bootstrap_shares
from dpotool.stats.intervals import Interval
from dpotool.wording import count

_CENTRAL = (0.5, 99.5)


def draw(scene: Scene) -> Drawing:
    """Draws the scored runs; raises DpotoolError when one has no margins."""
    figure = plot_margin(scene.need_runs(), **scene.title)
    shares = "; ".join(f"{run.label}: {percent(_share(run).value)} of margins above zero" for run in scene.runs)
    return Drawing(figure, f"Histograms of reward margins, a row per run. {shares}.")


@styled
def plot_margin(runs: Sequence[ScoredRun], *, model: str, data: str) -> Figure:
    """Draws the reward margins of each run over one axis, with the share above zero and its 95 % interval.

    What lies below zero (pairs the policy ranks wrongly) is hatched; a tie, a margin of exactly zero, counts as wrong.

    Args:
        runs: scored against a reference, in the order to show.
        model, data: for the title.

    Raises DpotoolError when a run has no margins.
    """
    for run in runs:
        if "reward_margins" not in run.columns:
            raise DpotoolError("no reward margins to draw", where=run.label, remedy="Score it again with --reference")
    margins = {run.label: run.columns["reward_margins"] for run in runs}
    pooled = np.concatenate(list(margins.values()))
    edges = _edges(pooled, max(run.n for run in runs))
    n_rows = len(runs)
    figure = make_figure(7.5, 1.5 + n_rows * (1.0 if n_rows <= 4 else 0.62))
    grid = figure.subplots(n_rows, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, run in zip(grid, runs, strict=True):
        _draw_ridge(axes, margins[run.label], edges)
        _describe_row(axes, run)
        label_row(axes, run, runs)
    grid[0].set_xlim(edges[0], edges[-1])
    grid[0].set_ylim(0, 1.12 * max(axes.dataLim.y1 for axes in grid))
    join_rows(list(grid))
    grid[-1].set_xlabel("reward margin, β · (change of chosen − change of rejected), nats")
    set_title(figure, "Reward margins", model, data, describe_ns(runs))
    n_outside = int(((pooled < edges[0]) | (pooled > edges[-1])).sum())
    beyond = f" {n_outside:,} of {count(len(pooled), 'value')} lie beyond the axis." if n_outside else ""
    set_note(
        figure,
        "Share of pairs per bin. The triangle stands at the mean. Brackets are 95 % bootstrap intervals." + beyond,
    )
    return figure


def _share(run: ScoredRun) -> Interval:
    """The share of margins above 0; pairs of one prompt are drawn together."""
    return bootstrap_shares({"": run.columns["reward_accuracy"]}, clusters=run.clusters)[""]


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
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.plot(values.mean(), 0.02, marker="^", color=INK, markersize=7, transform=axes.get_xaxis_transform(), zorder=5)


def _describe_row(axes: Axes, run: ScoredRun) -> None:
    share, n_ties = _share(run), int((run.columns["reward_margins"] == 0).sum())
    mean = format_number(float(run.columns["reward_margins"].mean()))
    text = f"mean {mean}\n{percent(share.value)} above 0\n[{100 * share.ci_low:.1f}, {100 * share.ci_high:.1f}]"
    text += f"\n{count(n_ties, 'tie')}" if n_ties else ""
    axes.annotate(
        text, (1.0, 0.5), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points", ha="left", va="center",
        fontsize=8, color=MUTED if share.value < 0.5 else INK,
    )  # fmt: skip
