"""How far training moved each pair: the change of its chosen and of its rejected log-likelihood, a row per run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from dpotool.compare.scored_run import SIDES, ScoredRun
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene, require_references
from dpotool.plots.theme import (
    CHOSEN,
    HATCHES,
    INK,
    REJECTED,
    choose_n_bins,
    describe_ns,
    join_rows,
    label_row,
    make_figure,
    percent,
    set_note,
    set_title,
    styled,
)
from dpotool.stats.bootstrap import bootstrap_means
from dpotool.stats.intervals import Interval, format_interval
from dpotool.wording import count

_COLORS = {"chosen": CHOSEN, "rejected": REJECTED}
_CENTRAL = (0.5, 99.5)  # percentiles the axis spans: a few very long completions would squeeze everything else


def draw(scene: Scene) -> Drawing:
    """Draws the scored runs; raises DpotoolError when one has no reference."""
    figure = plot_displacement(scene.need_runs(), **scene.title, recommended=scene.recommended)
    words = "; ".join(
        f"{run.label}: " + ", ".join(f"{side} {say_mean(mean)} nats" for side, mean in measure_changes(run).items())
        for run in scene.runs
    )
    return Drawing(
        figure, f"Distributions of the change of each pair's log-likelihoods, a row per run. Means: {words}."
    )


def measure_changes(run: ScoredRun) -> dict[str, Interval]:
    """Returns the mean change from the reference of chosen and rejected log-likelihood, nats, with its interval."""
    return bootstrap_means({side: run.columns[f"{side}_displacement"] for side in SIDES}, clusters=run.clusters)


@styled
def plot_displacement(runs: Sequence[ScoredRun], *, model: str, data: str, recommended: str | None = None) -> Figure:
    """Draws histograms of the change, chosen above and rejected below a common line, with means and 95 % intervals.

    Args:
        runs: scored against a reference, in the order to show.
        model, data: for the title.
        recommended: label of the run to mark.

    Raises DpotoolError when a run has no reference or no pair.
    """
    require_references(runs)
    figure = make_figure(8.4, 1.6 + len(runs) * (1.15 if len(runs) <= 4 else 0.8))
    grid = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    edges = _find_edges(runs)
    for axes, run in zip(grid, runs, strict=True):
        _draw_row(axes, run, edges)
        label_row(axes, run, runs, is_recommended=run.label == recommended)
    grid[0].set_xlim(edges[0], edges[-1])
    tallest = max(abs(height) for axes in grid for height in (axes.dataLim.y0, axes.dataLim.y1))
    grid[0].set_ylim(-1.1 * tallest, 1.1 * tallest)
    join_rows(list(grid))
    grid[-1].set_xlabel("change of log π from the reference (nats); below 0: less likely")
    handles = [
        Patch(facecolor=color, alpha=0.45, edgecolor=color, hatch=HATCHES[side], label=f"{side} answers")
        for side, color in _COLORS.items()
    ]
    grid[0].legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    set_title(figure, "Displacement pair by pair", model, data, describe_ns(runs))
    values = np.concatenate([run.columns[f"{side}_displacement"] for run in runs for side in SIDES])
    n_outside = int(((values < edges[0]) | (values > edges[-1])).sum())
    beyond = (
        f" {n_outside:,} of {count(len(values), 'value')} lie beyond the axis and count in the means."
        if n_outside
        else ""
    )
    set_note(
        figure,
        "Share of pairs per bin: chosen above each line, rejected below it. Points and figures: means with 95 % "
        f"bootstrap intervals over pairs.{beyond}",
    )
    return figure


def _find_edges(runs: Sequence[ScoredRun]) -> NDArray[np.float64]:
    """Bin edges over the central 99 % of all changes and over every mean, one of them exactly at zero."""
    changes = [run.columns[f"{side}_displacement"] for run in runs for side in SIDES]
    ends = [*np.percentile(np.concatenate(changes), _CENTRAL), *(each.mean() for each in changes), 0.0]
    low, high = min(ends), max(ends)
    width = (high - low) / choose_n_bins(max(run.n for run in runs)) or 0.1
    return width * np.arange(np.floor(low / width) - 1, np.ceil(high / width) + 2)


def _draw_row(axes: Axes, run: ScoredRun, edges: NDArray[np.float64]) -> None:
    means = measure_changes(run)
    weights = np.full(run.n, 1 / run.n)
    for side, sign in (("chosen", 1), ("rejected", -1)):
        color = _COLORS[side]
        axes.hist(
            run.columns[f"{side}_displacement"], bins=list(edges), weights=sign * weights, histtype="stepfilled",
            facecolor=color, alpha=0.45, edgecolor=color, hatch=HATCHES[side], zorder=2,
        )  # fmt: skip
        _mark_mean(axes, means[side], sign, color)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=3)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
    for side, sign in (("chosen", 1), ("rejected", -1)):
        fell = percent(float(np.mean(run.columns[f"{side}_displaced_share"])))
        axes.annotate(
            f"{side} {say_mean(means[side])}\nfell on {fell}", (1.0, 0.5 + 0.25 * sign), xycoords="axes fraction",
            xytext=(6, 0), textcoords="offset points", ha="left", va="center", fontsize=8, color=_COLORS[side],
        )  # fmt: skip


def _mark_mean(axes: Axes, mean: Interval, sign: int, color: str) -> None:
    """A point with its interval in the middle of a side's half."""
    axes.errorbar(
        mean.value, 0.5 + 0.25 * sign, xerr=np.nan_to_num([[mean.value - mean.ci_low], [mean.ci_high - mean.value]]),
        fmt="o" if sign > 0 else "s", color=INK, markerfacecolor=color, markersize=6, capsize=3, elinewidth=1.6,
        transform=axes.get_xaxis_transform(), zorder=5,
    )  # fmt: skip


def say_mean(mean: Interval) -> str:
    """Returns "−3.79 [−4.39, −3.30]"."""
    return format_interval(mean.to_dict(), "+z.2f").replace("-", "−")
