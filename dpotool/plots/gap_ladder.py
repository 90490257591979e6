"""The error of the exact first-order gaps, which must fall with the square of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    COLORS,
    DASHES,
    INK,
    MARKERS,
    MUTED,
    describe_n,
    format_power,
    format_significant,
    make_figure,
    set_note,
    set_title,
    styled,
)

_GAPS = {
    "g1": "error of g1,\nchosen log-likelihood (nats)",
    "g2": "error of g2,\nsmoothed reward accuracy",
}
_OPTIMIZERS = {"sgd": "gradient descent", "adamw": "AdamW, first step"}
_OFFSET = 3.0  # of the line with slope 2 over the highest residual


def draw(scene: Scene) -> Drawing:
    """Draws the newest theory summary with measured steps; raises DpotoolError where there is none."""
    found = scene.need_theory("verification")
    figure = plot_gap_ladder(found.summary["verification"], **found.title)
    slopes = "; ".join(
        f"{_OPTIMIZERS.get(optimizer, optimizer)}, f = {f}, {name}: "
        + ("none" if gap["slope"] is None else f"{gap['slope']:.2f}")
        for optimizer, by_shift in found.summary["verification"]["optimizers"].items()
        for f, gaps in by_shift.items()
        for name, gap in gaps.items()
        if name in _GAPS
    )
    text = "Error of the first-order gaps against the learning rate, on logarithmic axes."
    return Drawing(figure, f"{text} Slopes (2 means that the first order is right): {slopes}.")


@styled
def plot_gap_ladder(verification: Mapping[str, Any], *, model: str, data: str) -> Figure:
    """Draws the residual (root mean square over pairs of measured minus predicted gap) against the learning rate.

    A column per optimizer, a row per gap, a line per f with its fitted slope, and a line of slope 2 to compare with.

    Args:
        verification: entry of a theory summary.
        model, data: for the title.

    Raises DpotoolError when no step was measured.
    """
    optimizers = {name: by_shift for name, by_shift in verification.get("optimizers", {}).items() if by_shift}
    if not optimizers:
        remedy = "Run `dpotool theory-gap --verify 16` first"
        raise DpotoolError("no measured gap to draw", remedy=remedy)
    figure = make_figure(0.6 + 4.6 * len(optimizers), 6.2)
    grid = figure.subplots(2, len(optimizers), sharex="col", sharey="row", squeeze=False)
    for column, (optimizer, by_shift) in zip(grid.T, optimizers.items(), strict=True):
        column[0].set_title(_OPTIMIZERS.get(optimizer, optimizer), fontsize=9)
        for axes, gap in zip(column, _GAPS, strict=True):
            _draw_ladders(axes, {f: by_shift[f][gap] for f in sorted(by_shift, key=float)})
        column[-1].set_xlabel("learning rate of the step")
    for axes, label in zip(grid[:, 0], _GAPS.values(), strict=True):
        axes.set_ylabel(label)
    set_title(figure, "Error of the first-order prediction", model, data, describe_n(int(verification["n"])))
    set_note(
        figure,
        "Error: root mean square over pairs of measured minus predicted gap. If the prediction is right to "
        "first order, "
        f"its error falls with the square of the learning rate: slope 2. Computed in {verification['dtype']}.",
    )
    return figure


def _draw_ladders(axes: Axes, gaps: Mapping[str, Mapping[str, Any]]) -> None:
    highest = 0.0
    for position, (f, gap) in enumerate(gaps.items()):
        rates = [rung["rate"] for rung in gap["ladder"]]
        residuals = [rung["residual"] for rung in gap["ladder"]]
        highest = max(highest, residuals[0])
        slope = "none" if gap["slope"] is None else f"{gap['slope']:.2f}"
        axes.plot(
            rates, residuals, marker=MARKERS[position % len(MARKERS)], color=COLORS[position % len(COLORS)],
            linestyle=DASHES[position % len(DASHES)], linewidth=1.3, markersize=5.5, markeredgecolor=INK,
            markeredgewidth=0.5, label=f"f = {f}: slope {slope}", zorder=3,
        )  # fmt: skip
    if highest > 0:
        ends = [rates[0], rates[-1]]
        line = [_OFFSET * highest * (rate / ends[0]) ** 2 for rate in ends]
        axes.plot(ends, line, color=MUTED, linewidth=1.0, linestyle=(0, (1, 1.5)), label="slope 2", zorder=2)
    axes.set(xscale="log", yscale="log" if highest > 0 else "linear")
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: format_significant(rate, 2)))
    if highest > 0:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: format_power(error)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid()
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.5, handlelength=2.6)
