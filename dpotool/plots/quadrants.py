"""Change of the chosen against change of the rejected log-likelihood, a point per pair: which rose and which fell.

Pairs above the diagonal have a positive margin; below the horizontal axis the chosen completion lost likelihood, which
is displacement. The lower left quadrant, both down, is the one DPO is known for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpotool.compare.scored_run import ScoredRun
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene, require_references
from dpotool.plots.theme import (
    CHOSEN,
    INK,
    MANY,
    MUTED,
    REJECTED,
    describe_ns,
    make_panels,
    percent,
    set_note,
    set_title,
    styled,
    title_panel,
)
from dpotool.wording import count

QUADRANTS = {
    "chosen up, rejected down": (1, -1),
    "both up": (1, 1),
    "both down": (-1, -1),
    "chosen down, rejected up": (-1, 1),
}
"""Name -> sign of the change of chosen, of rejected."""
_CENTRAL = (0.5, 99.5)


def draw(scene: Scene) -> Drawing:
    """Draws the scored runs; raises DpotoolError when one has no reference."""
    figure = plot_quadrants(scene.need_runs(), **scene.title, recommended=scene.recommended)
    shares = " ".join(f"{run.label}: {_describe(run)}." for run in scene.runs)
    text = "Change of the chosen against change of the rejected log-likelihood, a point per pair and a panel per run."
    return Drawing(figure, f"{text} {shares}")


def count_quadrants(run: ScoredRun) -> dict[str, int]:
    """Returns how many pairs lie in each quadrant, and under `on an axis` those with a change of exactly zero."""
    chosen, rejected = (np.sign(run.columns[f"{side}_displacement"]) for side in ("chosen", "rejected"))
    counts = {name: int(((chosen == up) & (rejected == right)).sum()) for name, (up, right) in QUADRANTS.items()}
    return counts | {"on an axis": run.n - sum(counts.values())}


@styled
def plot_quadrants(runs: Sequence[ScoredRun], *, model: str, data: str, recommended: str | None = None) -> Figure:
    """Draws a panel per run on common axes, with the share of pairs in each quadrant in its corner.

    Args:
        runs: scored against a reference, in the order to show.
        model, data: for the title.
        recommended: label of the run to mark.

    Raises DpotoolError when a run has no reference or no pair.
    """
    require_references(runs)
    figure, panels = make_panels(len(runs), width=3.2, height=3.0)
    limits = _find_limits(runs)
    n_outside = 0
    for axes, run in zip(panels, runs, strict=True):
        n_outside += _draw_pairs(axes, run, limits)
        title_panel(axes, run.label, is_recommended=run.label == recommended)
        _write_counts(axes, run)
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel("change of log π(chosen) (nats)")
        if axes.xaxis.get_tick_params()["labelbottom"]:
            axes.set_xlabel("change of log π(rejected) (nats)")
    set_title(figure, "Which way the pairs moved", model, data, describe_ns(runs))
    beyond = f" {count(n_outside, 'point')} beyond the axes still counted in the corners." if n_outside else ""
    set_note(
        figure,
        "Change from the reference. Dots: margin above 0; crosses: margin 0 or below. Dashed: both change alike. "
        f"White plus: mean over pairs.{beyond}",
    )
    return figure


def _describe(run: ScoredRun) -> str:
    counts = count_quadrants(run)
    return ", ".join(f"{name} {percent(counts[name] / run.n)}" for name in QUADRANTS)


Limits = tuple[tuple[float, float], tuple[float, float]]


def _find_limits(runs: Sequence[ScoredRun]) -> Limits:
    """x and y limits with the central 99 % of all pairs, zero, and some room for the texts in the corners."""
    limits = []
    for side, pad in (("rejected", 0.06), ("chosen", 0.18)):
        values = np.concatenate([run.columns[f"{side}_displacement"] for run in runs])
        low, high = np.percentile(values, _CENTRAL)
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        span = (high - low) or 1.0
        low, high = min(low, high - span, -0.12 * span), max(high, low + span, 0.12 * span)
        limits.append((low - pad * span, high + pad * span))
    return limits[0], limits[1]


def _draw_pairs(axes: Axes, run: ScoredRun, limits: Limits) -> int:
    """Draws a run's pairs and their mean; returns how many pairs lie beyond the limits."""
    chosen, rejected = (run.columns[f"{side}_displacement"] for side in ("chosen", "rejected"))
    (left, right), (bottom, top) = limits
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    is_right = chosen > rejected
    size = 4 if run.n > MANY else 14
    for mask, marker, color in ((is_right, "o", CHOSEN), (~is_right, "x", REJECTED)):
        axes.scatter(
            rejected[mask], chosen[mask], s=size, marker=marker, color=color, alpha=0.5,
            linewidths=0.8 * (marker == "x"), zorder=3, rasterized=run.n > MANY,
        )  # fmt: skip
    axes.plot(rejected.mean(), chosen.mean(), "P", color="white", markeredgecolor=INK, markersize=9, zorder=4)
    return int(((rejected < left) | (rejected > right) | (chosen < bottom) | (chosen > top)).sum())


def _write_counts(axes: Axes, run: ScoredRun) -> None:
    counts = count_quadrants(run)
    for name, (up, right) in QUADRANTS.items():
        axes.text(
            0.98 if right > 0 else 0.02, 0.98 if up > 0 else 0.02,
            f"{name.replace(', ', ',' + chr(10))}\n{percent(counts[name] / run.n)}",
            transform=axes.transAxes, fontsize=7.5,
            ha="right" if right > 0 else "left", va="top" if up > 0 else "bottom", zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
