"""The paper's main figure, distributions of log-likelihoods and margins, and beside them the change pair by pair.

The first three columns are the layout of DPO-Shift's figures (arXiv:2502.07599). Their spread over pairs is many times
the shift that training brings about, which the fourth column shows: the same pairs, before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from dpotool.compare.scored_run import ScoredRun
from dpotool.plots.displacement import measure_changes, say_mean
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    CHOSEN,
    HATCHES,
    INK,
    MARGIN,
    REJECTED,
    choose_n_bins,
    describe_ns,
    format_number,
    label_row,
    make_figure,
    set_note,
    set_title,
    styled,
)
from dpotool.wording import count

COLUMNS = {
    "chosen_logps": ("log π(chosen) (nats)", CHOSEN, HATCHES["chosen"]),
    "rejected_logps": ("log π(rejected) (nats)", REJECTED, HATCHES["rejected"]),
    "reward_margins": ("reward margin (nats)", MARGIN, HATCHES["margin"]),
    "chosen_displacement": ("change of log π(chosen),\npair by pair (nats)", CHOSEN, HATCHES["chosen"]),
}
_REFERENCE_OF = {"chosen_logps": "ref_chosen_logps", "rejected_logps": "ref_rejected_logps"}
_CHANGES = ("reward_margins", "chosen_displacement")
"""Columns that are 0 for every pair of the reference."""
_CENTRAL = (0.5, 99.5)  # percentiles the axes span: a few very long completions would squeeze everything else
_HEADROOM = 1.25  # of the highest bar, for the value of the mean
_REFERENCE_DASH = (0, (3, 1.5))

Values = NDArray[np.float64]


def draw(scene: Scene) -> Drawing:
    """Draws the scored runs; raises DpotoolError when one has no scored pair."""
    figure = plot_distributions(scene.need_runs(), **scene.title, recommended=scene.recommended)
    words = "; ".join(f"{run.label}: {', '.join(_list_means(run))}" for run in scene.runs)
    text = "Histograms of log-likelihoods, of the reward margin and of each pair's change, a row per run"
    return Drawing(figure, f"{text}. Means: {words}.")


def _list_means(run: ScoredRun) -> list[str]:
    names = {"chosen_logps": "log π(chosen)", "rejected_logps": "log π(rejected)", "reward_margins": "margin"}
    found = [f"{said} {run.columns[name].mean():.2f}" for name, said in names.items() if name in run.columns]
    return found + ([f"change of chosen {say_mean(measure_changes(run)['chosen'])}"] if run.is_referenced else [])


@styled
def plot_distributions(
    runs: Sequence[ScoredRun], *, model: str, data: str, reference: str = "reference", recommended: str | None = None
) -> Figure:
    """Draws chosen and rejected log-likelihood, reward margin and the change of chosen, a row per run, reference first.

    The reference row comes from the `ref_*` columns of the first run that has them; its margin and change are zero for
    every pair by definition, which the cells say instead of drawing a spike. Behind each run stands the outline of the
    reference that it was scored against. x axes are shared down a column, heights too.

    Args:
        runs: in the order to show.
        model, data: for the title.
        reference: label of the reference row.
        recommended: label of the run to mark.

    Raises DpotoolError when a run has no scored pair.
    """
    for run in runs:
        run.need_pairs()
    with_reference = [run for run in runs if run.is_referenced]
    n_rows = len(runs) + bool(with_reference)
    figure = make_figure(11.0, 1.6 + n_rows * (1.3 if n_rows <= 4 else 0.95))
    grid = figure.subplots(n_rows, len(COLUMNS), sharex="col", sharey="col", squeeze=False)
    bins = {name: _shared_bins(runs, name) for name in COLUMNS}
    if with_reference:
        _draw_reference_row(grid[0], reference, with_reference[0], bins)
    for axes_row, run in zip(grid[n_rows - len(runs) :], runs, strict=True):
        label_row(axes_row[0], run, runs, is_recommended=run.label == recommended)
        for axes, name in zip(axes_row, COLUMNS, strict=True):
            _draw_cell(axes, run, name, bins[name])
    _finish(grid, bins)
    set_title(figure, "Likelihoods and margins", model, data, describe_ns(runs))
    set_note(figure, _describe_axes(runs, bins, with_reference))
    return figure


def _values(run: ScoredRun, name: str) -> Values:
    return run.columns.get(name, np.empty(0))


def _shared_bins(runs: Sequence[ScoredRun], name: str) -> Values:
    """Bin edges over the central 99 % of all runs' values of a column, reference included, and over every mean."""
    names = [name, _REFERENCE_OF[name]] if name in _REFERENCE_OF else [name]
    groups = [values for run in runs for each in names if len(values := _values(run, each))]
    if not groups:
        return np.linspace(-1, 1, 13)
    ends = [*np.percentile(np.concatenate(groups), _CENTRAL), *(group.mean() for group in groups)]
    low, high = min(ends), max(ends)
    if name in _CHANGES:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.04 * (high - low) or 1.0
    return np.linspace(low - pad, high + pad, choose_n_bins(max(len(group) for group in groups)) + 1)


def _draw_cell(axes: Axes, run: ScoredRun, name: str, bins: Values) -> None:
    values = _values(run, name)
    if not len(values):
        _say(axes, "not known without a reference")
        return
    _fill(axes, values, name, bins)
    if name in _CHANGES:
        axes.axvline(0, color=INK, linewidth=0.8)
    elif len(reference := _values(run, _REFERENCE_OF[name])):
        axes.hist(reference, bins=list(bins), histtype="step", color=INK, linewidth=0.9, linestyle=_REFERENCE_DASH)
        axes.axvline(reference.mean(), color=INK, linewidth=0.9, linestyle=_REFERENCE_DASH)
    if name == "chosen_displacement":
        change = measure_changes(run)["chosen"]
        axes.axvspan(change.ci_low, change.ci_high, color=INK, alpha=0.2, linewidth=0)
        _mark_mean(axes, change.value, say_mean(change).replace(" [", "\n["))
    else:
        _mark_mean(axes, float(values.mean()), format_number(float(values.mean())))


def _draw_reference_row(axes_row: NDArray[Any], label: str, run: ScoredRun, bins: Mapping[str, Values]) -> None:
    axes_row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=6)
    for axes, name in zip(axes_row[:2], _REFERENCE_OF, strict=True):
        values = _values(run, _REFERENCE_OF[name])
        _fill(axes, values, name, bins[name])
        _mark_mean(axes, float(values.mean()), format_number(float(values.mean())))
    for axes in axes_row[2:]:
        axes.axvline(0, color=INK, linewidth=0.8)
        _say(axes, "0 for every pair,\nby definition")
    handles = [
        Line2D([], [], color=INK, linewidth=1.6, label="mean"),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=_REFERENCE_DASH, label="reference and its mean"),
    ]
    axes_row[2].legend(handles=handles, loc="lower right", fontsize=7.5, borderaxespad=0.2, labelspacing=0.3)


def _fill(axes: Axes, values: Values, name: str, bins: Values) -> None:
    _, color, hatch = COLUMNS[name]
    axes.hist(values, bins=list(bins), histtype="stepfilled", facecolor=color, alpha=0.35, edgecolor=color, hatch=hatch)
    axes.hist(values, bins=list(bins), histtype="step", color=color, linewidth=1.1)


def _mark_mean(axes: Axes, mean: float, text: str) -> None:
    """A line at the mean and its value beside it, on the side that has room."""
    axes.axvline(mean, color=INK, linewidth=1.6)
    low, high = axes.get_xlim()
    is_right = mean > low + 0.55 * (high - low)
    axes.annotate(
        text, (mean, 0.97), xycoords=("data", "axes fraction"), xytext=(-4 if is_right else 4, 0),
        textcoords="offset points", ha="right" if is_right else "left", va="top", fontweight="bold", fontsize=8,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip


def _say(axes: Axes, text: str) -> None:
    box = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
    axes.text(0.99, 0.93, text, transform=axes.transAxes, ha="right", va="top", fontsize=7.5, style="italic", bbox=box)


def _finish(grid: NDArray[Any], bins: Mapping[str, Values]) -> None:
    for axes_column, (name, (title, _, _)) in zip(grid.T, COLUMNS.items(), strict=True):
        axes_column[0].set_xlim(bins[name][0], bins[name][-1])
        tallest = max((axes.dataLim.y1 for axes in axes_column if axes.patches), default=1.0)
        axes_column[0].set_ylim(0, _HEADROOM * tallest)
        axes_column[-1].set_xlabel(title)
    for axes in grid.flat:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)


def _describe_axes(runs: Sequence[ScoredRun], bins: Mapping[str, Values], with_reference: Sequence[ScoredRun]) -> str:
    values = [(_values(run, name), bins[name]) for run in runs for name in COLUMNS]
    n_outside = sum(int(((v < b[0]) | (v > b[-1])).sum()) for v, b in values)
    n_all = sum(len(v) for v, _ in values)
    text = (
        "Pairs per bin, thick line at the mean; bins, axes and heights are the same down a column. In brackets: 95 % "
        "bootstrap interval of the mean change."
    )
    if n_outside:
        text += f" {n_outside:,} of {count(n_all, 'value')} lie beyond the axes and count in the means."
    means = [run.columns["ref_chosen_logps"].mean() for run in with_reference]
    if means and not np.allclose(means, means[0], rtol=1e-6):
        text += f" The rows' references differ; the first row is that of {with_reference[0].label}."
    return text
