"""Shift factors for which a step on one pair raises its chosen and lowers its rejected answer, and for how many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    CHOSEN,
    DASHES,
    DPO,
    INK,
    MARGIN,
    MUTED,
    REJECTED,
    choose_n_bins,
    describe_n,
    make_figure,
    mark_lambdas,
    put_legend_above,
    set_note,
    set_title,
    styled,
)
from dpotool.stats.bootstrap import bootstrap_interval, bootstrap_shares
from dpotool.stats.intervals import Interval
from dpotool.theory.summary import split_usable
from dpotool.theory.theorem import compute_band_center
from dpotool.wording import count

GRID = np.unique(np.append(np.geomspace(0.2, 1.6, 140), DPO))
"""Shift factors at which shares are counted; the axis is logarithmic, as 1/f is to f = 1 what f is."""
_TICKS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6)
_CURVES = {
    "chosen": ("chosen does not fall", CHOSEN, DASHES[1]),
    "rejected": ("rejected does not rise", REJECTED, DASHES[3]),
    "both": ("both: f lies in the pair's band", MARGIN, DASHES[0]),
}
_HEADROOM = 1.13  # of the share axis, for the names of the marked lambdas

Values = NDArray[np.float64]


def draw(scene: Scene) -> Drawing:
    """Draws the newest theory table; raises DpotoolError where there is none."""
    found = scene.need_theory()
    frame = found.frame
    advice = found.summary.get("advice", {}).get(found.summary.get("advice_from"), {})
    recommended = advice.get("recommended_lambda")
    figure = plot_band(frame, **found.title, n_excluded=found.n_excluded, recommended=recommended)
    usable, _ = split_usable(frame)
    text = (
        "Share of pairs for which a step on the pair alone raises the chosen or lowers the rejected answer, against f."
    )
    return Drawing(figure, f"{text} {_describe(count_pairs(usable), usable, 0)}")


@styled
def plot_band(
    table: pd.DataFrame, *, model: str, data: str, n_excluded: int = 0, recommended: float | None = None
) -> Figure:
    """Draws the share of pairs that a step on themselves moves as wished against f, above the bands' log-centres.

    Args:
        table: theory table.
        model, data: for the title.
        n_excluded: pairs left out before the table was made; those without finite products are added.
        recommended: a lambda to mark, besides DPO's.

    Raises DpotoolError when no pair has finite products.
    """
    usable, not_finite = split_usable(table)
    if usable.empty:
        raise DpotoolError("no pair with a band to draw", remedy="Run `dpotool theory-gap` again")
    figure = make_figure(7.2, 5.8)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.15))
    shares = count_pairs(usable)
    for name, (label, color, dash) in _CURVES.items():
        _draw_curve(axes, shares[name], label, color, dash, is_main=name == "both")
    axes.set_ylim(0, _HEADROOM)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_ylabel("share of pairs")
    axes.grid()
    put_legend_above(axes, 3)
    n_outside = _draw_centres(below, usable)
    mark_lambdas(axes, recommended)
    mark_lambdas(below, recommended, names="none")
    _set_f_axis(below)
    n = len(usable)
    set_title(figure, "Admissible band of f", model, data, describe_n(n, n_excluded + sum(not_finite.values())))
    set_note(figure, _describe(shares, usable, n_outside))
    return figure


def count_pairs(usable: pd.DataFrame) -> dict[str, list[Interval]]:
    """Returns chosen, rejected and both -> the share of pairs with its interval, for every f of GRID.

    A step on a pair alone moves log pi(chosen) by |W|^2 - f <W, L> and log pi(rejected) by <W, L> - f |L|^2, over a
    positive factor. The ends of the band count, as in the summary's `admissible_share`.
    """
    low, high = (usable[name].to_numpy(dtype=np.float64)[:, None] for name in ("band_low", "band_high"))
    holds = {"chosen": high >= GRID, "rejected": low <= GRID}
    holds["both"] = holds["chosen"] & holds["rejected"]
    found = {}
    for name, held in holds.items():
        shares = bootstrap_shares({str(i): held[:, i] for i in range(len(GRID))}, n_resamples=2_000)
        found[name] = list(shares.values())
    return found


def _draw_curve(axes: Axes, shares: list[Interval], label: str, color: str, dash: Any, *, is_main: bool) -> None:
    """The main curve is broad and pale, so that the one it coincides with shows on it."""
    low, high = ([getattr(share, end) for share in shares] for end in ("ci_low", "ci_high"))
    axes.fill_between(GRID, low, high, color=color, alpha=0.25 if is_main else 0.12, linewidth=0, zorder=2)
    axes.plot(
        GRID, [share.value for share in shares], color=color, linestyle=dash, linewidth=4 if is_main else 1.3,
        alpha=0.65 if is_main else 1, label=label, zorder=3 if is_main else 4,
    )  # fmt: skip


def _draw_centres(axes: Axes, usable: pd.DataFrame) -> int:
    """Histogram of |W| / |L|, pairs without an upper end of their band hatched; returns how many lie outside."""
    is_known = usable["rejected_grad_sq_norm"].to_numpy() > 0
    centres = _find_centres(usable)
    is_bounded = np.isfinite(usable["band_high"].to_numpy(dtype=np.float64))[is_known]
    edges = np.geomspace(GRID[0], GRID[-1], choose_n_bins(len(centres)) + 1)
    groups = {"⟨W, L⟩ > 0: the band ends": is_bounded, "⟨W, L⟩ ≤ 0: any f > 0": ~is_bounded}
    axes.hist(
        [centres[group] for group in groups.values()], bins=list(edges), stacked=True, histtype="stepfilled",
        color=["#DDDDDD", "white"], edgecolor=MUTED, linewidth=0.8, hatch=["", "/////"],
        label=[f"{name} ({count(int(group.sum()), 'pair')})" for name, group in groups.items()],
    )  # fmt: skip
    if len(centres):
        axes.axvline(float(np.median(centres)), color=INK, linewidth=1.6, zorder=3, label="median")
    axes.set_ylabel("pairs")
    axes.legend(loc="upper left", fontsize=7.5, borderaxespad=0.2)
    return int(((centres < GRID[0]) | (centres > GRID[-1])).sum())


def _find_centres(usable: pd.DataFrame) -> Values:
    """Returns |W| / |L| of the pairs with |L| > 0."""
    chosen, rejected = (usable[f"{side}_grad_sq_norm"].to_numpy(dtype=np.float64) for side in ("chosen", "rejected"))
    return compute_band_center(chosen[rejected > 0], rejected[rejected > 0])


def _set_f_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xlim(GRID[0], GRID[-1])
    axes.xaxis.set_major_locator(FixedLocator(list(_TICKS)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("f = λ, factor on the rejected reward (top: what f does; bottom: log-centre ‖W‖/‖L‖ of each band)")


def _describe(shares: dict[str, list[Interval]], usable: pd.DataFrame, n_outside: int) -> str:
    at_dpo = shares["both"][int(np.argmax(GRID == DPO))]
    best = int(np.argmax([share.value for share in shares["both"]]))
    text = (
        f"Both hold for {_percent(at_dpo)} of the pairs under DPO, and for the most, "
        f"{_percent(shares['both'][best])}, at f = {GRID[best]:.2g}."
    )
    centres = _find_centres(usable)
    if len(centres):
        middle = bootstrap_interval(centres, "median", n_resamples=2_000)
        text += f" Median centre {middle.value:.3g} [{middle.ci_low:.3g}, {middle.ci_high:.3g}]."
    if n_outside:
        text += f" {count(n_outside, 'centre')} beyond the axis."
    return f"{text} A step on the pair alone, to first order. Shaded and in brackets: 95 % intervals over pairs."


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.ci_low:.1f}, {100 * share.ci_high:.1f}]"
