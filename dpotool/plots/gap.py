"""The gaps g1 and g2 of DPO-Shift over DPO against f: as printed, exact to first order, and after a real step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    COLORS,
    DPO,
    INK,
    MUTED,
    REJECTED,
    describe_n,
    format_significant,
    make_figure,
    set_note,
    set_title,
    styled,
)
from dpotool.wording import count

GAPS = {
    "g1": "g1: chosen log-likelihood,\nDPO-Shift minus DPO",
    "g2": "g2: smoothed reward accuracy,\nDPO-Shift minus DPO",
}
_KINDS = {
    "paper": ("paper", "Theorem 2.1 as printed", COLORS[6], "o"),
    "self_step": ("self-step", "exact, each pair by itself", COLORS[0], "s"),
    "batch": ("batch", "exact, one step on all pairs", COLORS[2], "^"),
}
_TITLE: dict[str, Any] = {"fontsize": 9, "y": 1.0, "pad": 14}  # all at one height, above an axis' power of ten


@dataclass(frozen=True, slots=True)
class _Series:
    """One gap of one kind against f."""

    shifts: list[float]
    means: list[float]
    lows: list[float]
    highs: list[float]


def draw(scene: Scene) -> Drawing:
    """Draws the newest theory summary with gaps; raises DpotoolError where there is none."""
    found = scene.need_theory("gaps")
    figure = plot_gap(found.summary, **found.title)
    gaps = {key: kinds for key, kinds in found.summary["gaps"].items() if float(key) != DPO}
    words = "; ".join(
        f"f = {key}, {kind.replace('_', ' ')}: g1 {format_significant(gap['g1']['mean'])}, "
        f"g2 {format_significant(gap['g2']['mean'])}"
        for key, kinds in gaps.items()
        for kind, gap in kinds.items()
    )
    return Drawing(figure, f"Gaps of DPO-Shift over DPO against f, a column per way to compute them. {words}.")


@styled
def plot_gap(summary: Mapping[str, Any], *, model: str, data: str) -> Figure:
    """Draws each kind of gap in a column with its own axes: they differ by powers of ten, and only shapes compare.

    The measured column, where real steps were verified, is the gap after a step of gradient descent at the smallest
    learning rate, on the few pairs of the verification, with the exact first-order gap of those pairs as a line.

    Args:
        summary: a theory summary with `gaps`, `sign_disagreements` and perhaps `verification`.
        model, data: for the title.

    Raises DpotoolError when the summary has no gap.
    """
    gaps = {float(key): kinds for key, kinds in summary.get("gaps", {}).items() if float(key) != DPO}
    if not gaps:
        remedy = "Run `dpotool theory-gap` with --lambdas other than 1"
        raise DpotoolError("no gap between DPO-Shift and DPO to draw", remedy=remedy)
    kinds = [kind for kind in _KINDS if all(kind in of_shift for of_shift in gaps.values())]
    ladders = (summary.get("verification") or {}).get("optimizers", {}).get("sgd", {})
    n_columns = len(kinds) + bool(ladders)
    figure = make_figure(2.45 * n_columns + 0.6, 5.6)
    grid = figure.subplots(2, n_columns, sharex="col", squeeze=False)
    for row, gap in zip(grid, GAPS, strict=True):
        for axes, kind in zip(row, kinds, strict=False):
            _draw_kind(axes, _read_series(gaps, kind, gap), kind)
            _say(axes, *_describe_signs(summary, gaps, kind, gap))
        if ladders:
            _draw_measured(row[-1], ladders, gap)
        row[0].set_ylabel(GAPS[gap])
    for axes, kind in zip(grid[0], kinds, strict=False):
        axes.set_title(f"{_KINDS[kind][0]}\n{_KINDS[kind][1]}", **_TITLE)
    if ladders:
        n_measured = summary["verification"]["n"]
        grid[0, -1].set_title(f"measured\na real step, {count(n_measured, 'pair')}", **_TITLE)
    _finish(grid.ravel().tolist(), [*gaps, DPO])
    for axes in grid[-1]:
        axes.set_xlabel("f = λ")
    n_excluded = sum(summary.get("n_excluded", {}).values())
    set_title(figure, "Gaps g1 and g2 against f", model, data, describe_n(int(summary["n"]), n_excluded))
    set_note(figure, _describe(ladders))
    return figure


def _read_series(gaps: Mapping[float, Mapping[str, Any]], kind: str, gap: str) -> _Series:
    shifts = sorted(gaps)
    found = [gaps[f][kind][gap] for f in shifts]
    lows, highs = ([np.nan if one[end] is None else one[end] for one in found] for end in ("ci_low", "ci_high"))
    return _Series(shifts, [one["mean"] for one in found], lows, highs)


def _draw_kind(axes: Axes, series: _Series, kind: str) -> None:
    _, _, color, marker = _KINDS[kind]
    spread = np.nan_to_num(np.abs(np.array([series.lows, series.highs]) - np.array(series.means)))
    axes.errorbar(
        series.shifts, series.means, yerr=spread, fmt=marker, color=color, markersize=6, markeredgecolor=INK,
        markeredgewidth=0.6, capsize=3, elinewidth=1.1, zorder=3,
    )  # fmt: skip
    _draw_line(axes, series.shifts, series.means, color, "-")


def _draw_measured(axes: Axes, ladders: Mapping[str, Mapping[str, Any]], gap: str) -> None:
    shifts = sorted((key for key in ladders if float(key) != DPO), key=float)
    x = [float(key) for key in shifts]
    measured = [ladders[key][gap]["ladder"][-1]["measured"] for key in shifts]
    axes.plot(x, measured, "D", color=COLORS[1], markersize=6, markeredgecolor=INK, markeredgewidth=0.6, zorder=3)
    _draw_line(axes, x, [ladders[key][gap]["predicted"] for key in shifts], MUTED, (0, (4, 2)))
    _say(axes, f"{_describe_size(x[0], measured[0])}\ndashes: exact,\nthe same pairs", False, measured[0] >= 0)


def _draw_line(axes: Axes, shifts: list[float], means: list[float], color: str, dash: Any) -> None:
    """A line through the gaps and zero at f = 1, where DPO-Shift is DPO."""
    x, y = np.array([*shifts, DPO]), np.array([*means, 0.0])
    order = np.argsort(x)
    axes.plot(x[order], y[order], color=color, linewidth=1.2, linestyle=dash, zorder=2)


def _describe_signs(
    summary: Mapping[str, Any], gaps: Mapping[float, Mapping[str, Any]], kind: str, gap: str
) -> tuple[str, bool, bool]:
    """Returns what to write of size and signs, whether the mean's sign differs, and whether gaps are positive."""
    least = min(gaps)
    mean = gaps[least][kind][gap]["mean"]
    lines = [_describe_size(least, mean)]
    if kind == "paper":
        return lines[0], False, mean >= 0
    flipped = [f for f in gaps if np.sign(gaps[f][kind][gap]["mean"]) != np.sign(gaps[f]["paper"][gap]["mean"])]
    if flipped:
        lines.append(
            "mean: opposite sign\nto the paper's" if len(flipped) == len(gaps) else "mean: sign differs at some f"
        )
    shares = [signs[kind][gap]["value"] for signs in summary.get("sign_disagreements", {}).values() if kind in signs]
    if shares:
        low, high = (f"{100 * share:.1f}" for share in (min(shares), max(shares)))
        lines.append(f"sign unlike the paper's:\n{low if low == high else f'{low} to {high}'} % of pairs")
    return "\n".join(lines), bool(flipped), mean >= 0


def _describe_size(shift: float, value: float) -> str:
    """The first gap in figures: between kinds it differs by powers of ten, which no axis shows at a glance."""
    return f"{format_significant(value)} at f = {shift:g}"


def _say(axes: Axes, text: str, is_warning: bool, is_positive: bool) -> None:
    """Text in the corner that a gap falling to zero at f = 1 leaves free."""
    axes.text(
        0.98, 0.98 if is_positive else 0.03, text, transform=axes.transAxes, ha="right",
        va="top" if is_positive else "bottom", fontsize=7.5, color=REJECTED if is_warning else INK,
    )  # fmt: skip


def _finish(panels: list[Axes], shifts: list[float]) -> None:
    low, high = min(shifts), max(shifts)
    for axes in panels:
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
        axes.plot([DPO], [0], "*", color="white", markeredgecolor=INK, markersize=10, markeredgewidth=0.8, zorder=4)
        axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=True)
        axes.margins(y=0.12)
        axes.grid(axis="y")
        axes.set_axisbelow(True)


def _describe(ladders: Mapping[str, Mapping[str, Any]]) -> str:
    text = (
        "Every panel has its own axis. Paper: η = η1 = 1 and no factor β (nats²). Others: per unit of learning rate, "
        "g1 in nats. Star: DPO, 0 by definition. Bars: 95 % bootstrap intervals over pairs, where there are any."
    )
    if ladders:
        rate = next(iter(ladders.values()))["g1"]["ladder"][-1]["rate"]
        text += f" Measured: after gradient descent at learning rate {format_significant(rate, 2)}."
    return text
