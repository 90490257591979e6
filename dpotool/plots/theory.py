"""u against v of Theorem 2.1, a point per pair: in which quadrant, and which entanglement case, the pairs lie."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    COLORS,
    INK,
    MANY,
    MUTED,
    choose_n_bins,
    describe_n,
    format_power,
    make_figure,
    percent,
    set_note,
    set_title,
    styled,
)
from dpotool.theory.summary import PAPER_SHARES, split_usable
from dpotool.wording import count

_SIGNS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_CASE_MARKERS = ("o", "x", "^", "s", "D")
_WIDE = 20.0  # largest over median magnitude from which an axis is drawn in powers of ten
_PAD = {"x": 0.04, "y": 0.13}  # of the axis; above and below there must be room for the counts in the corners


def draw(scene: Scene) -> Drawing:
    """Draws the newest theory table; raises DpotoolError where there is none."""
    found = scene.need_theory()
    frame = found.frame
    figure = plot_theory(frame, **found.title, n_excluded=found.n_excluded)
    text = "Scatter of u against v of Theorem 2.1, a point per pair, its entanglement case as its shape."
    return Drawing(figure, f"{text} {put_in_words(frame)}")


def put_in_words(table: pd.DataFrame) -> str:
    """Returns how many pairs of a theory table lie in each quadrant of u and v and in each entanglement case, in %."""
    usable, _ = split_usable(table)
    signs, cases = (
        ", ".join(f"{name} {percent(n_pairs / len(usable))}" for name, n_pairs in counts.items())
        for counts in (count_signs(usable), count_cases(usable))
    )
    return f"Of {count(len(usable), 'pair')}: {signs}. One DPO step on the pair alone: {cases}."


@styled
def plot_theory(table: pd.DataFrame, *, model: str, data: str, n_excluded: int = 0) -> Figure:
    """Draws u against v with the share of each sign, histograms in the margins and the paper's shares beside ours.

    Axes are linear near zero and logarithmic beyond where the values span powers of ten. One quadrant is always empty:
    u and <W, L> have one sign, and <W, L> < 0 makes v = <W, L> - |L|^2 negative.

    Args:
        table: theory table.
        model, data: for the title.
        n_excluded: pairs left out before the table was made; those without finite products are added.

    Raises DpotoolError when no pair has finite u and v.
    """
    usable, not_finite = split_usable(table)
    if usable.empty:
        raise DpotoolError("no pair with finite u and v to draw", remedy="Run `dpotool theory-gap` again")
    u, v = (usable[name].to_numpy(dtype=np.float64) for name in ("u", "v"))
    figure = make_figure(7.2, 6.9)
    grid = figure.add_gridspec(3, 2, width_ratios=(5, 1), height_ratios=(1, 5, 0.35), wspace=0.02, hspace=0.02)
    axes = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=axes)
    right = figure.add_subplot(grid[1, 1], sharey=axes)
    _set_scale(axes, "x", u)
    _set_scale(axes, "y", v)
    _draw_points(axes, usable, u, v)
    _put_legend(figure.add_subplot(grid[2, :]), axes)
    _draw_histogram(top, u, axes.get_xlim(), "vertical")
    _draw_histogram(right, v, axes.get_ylim(), "horizontal")
    _write_quadrants(axes, usable)
    axes.set_xlabel("u ∝ ⟨W, L⟩: > 0, a λ < 1 keeps the chosen higher than DPO (nats²)")
    axes.set_ylabel("v = ⟨W, L⟩ − ‖L‖²: < 0, DPO lowers the rejected (nats²)")
    n_left_out = n_excluded + sum(not_finite.values())
    set_title(figure, "u and v of Theorem 2.1 per pair", model, data, describe_n(len(u), n_left_out))
    set_note(figure, _compare_with_paper(u, v))
    return figure


def _set_scale(axes: Axes, which: str, values: NDArray[np.float64]) -> None:
    """Limits that hold all values and both signs; powers of ten where the values span them."""
    magnitudes = np.abs(values[values != 0])
    if not len(magnitudes) or magnitudes.max() <= _WIDE * np.median(magnitudes):
        largest = magnitudes.max() if len(magnitudes) else 1.0
        low, high = min(values.min(), -0.35 * largest), max(values.max(), 0.35 * largest)
    else:
        threshold = 10 ** np.floor(np.log10(np.percentile(magnitudes, 5)))
        getattr(axes, f"set_{which}scale")("symlog", linthresh=threshold, linscale=0.6)
        low, high = min(values.min(), -3 * threshold), max(values.max(), 3 * threshold)
        _set_decade_ticks(axes, which, float(threshold), max(-low, high))
    transform = (axes.xaxis if which == "x" else axes.yaxis).get_transform()
    bottom, top = transform.transform(np.array([low, high]))
    pad = _PAD[which] * (top - bottom)
    limits = transform.inverted().transform(np.array([bottom - pad, top + pad]))
    axes.set(**{f"{which}lim": tuple(limits)})
    line = axes.axvline if which == "x" else axes.axhline
    line(0, color=INK, linewidth=0.8, zorder=1)


def _set_decade_ticks(axes: Axes, which: str, threshold: float, largest: float) -> None:
    """Zero and at most four powers of ten on either side; matplotlib's default ticks overlap."""
    first, last = round(np.log10(threshold)), int(np.floor(np.log10(largest)))
    decades = range(last, first - 1, -max(1, -(-(last - first + 1) // 4)))
    ticks = [0.0, *(sign * 10.0**d for d in decades for sign in (-1, 1))]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _place: format_power(value)))


def _draw_points(axes: Axes, usable: pd.DataFrame, u: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    """One shape and colour per entanglement case, the most frequent first."""
    cases = _name_cases(usable)
    size = 22 if len(u) <= MANY else 8
    for position, (case, n_pairs) in enumerate(count_cases(usable).items()):
        is_case = (cases == case).to_numpy()
        marker = _CASE_MARKERS[position % len(_CASE_MARKERS)]
        axes.scatter(
            u[is_case], v[is_case], s=size, marker=marker, color=COLORS[position % len(COLORS)], alpha=0.65,
            linewidths=0.9 if marker == "x" else 0.3, edgecolors=None if marker == "x" else "white",
            rasterized=len(u) > MANY, zorder=3, label=f"{case}: {n_pairs:,} ({percent(n_pairs / len(u))})",
        )  # fmt: skip


def count_cases(usable: pd.DataFrame) -> dict[str, int]:
    """Returns how many pairs are in each entanglement case, the most frequent first: "chosen up, rejected down"."""
    return {str(case): int(n_pairs) for case, n_pairs in _name_cases(usable).value_counts().items()}


def _name_cases(usable: pd.DataFrame) -> pd.Series:
    names = usable["entanglement"].fillna("not known")
    return names.str.replace("_rejected", ", rejected").str.replace("_", " ")


def count_signs(usable: pd.DataFrame) -> dict[str, int]:
    """Returns how many pairs have u and v of which signs; those with u or v exactly zero are in no entry."""
    u, v = (np.sign(usable[name].to_numpy(dtype=np.float64)) for name in ("u", "v"))
    return {
        f"u {'>' if x_sign > 0 else '<'} 0, v {'>' if y_sign > 0 else '<'} 0": int(
            ((u == x_sign) & (v == y_sign)).sum()
        )
        for x_sign, y_sign in _SIGNS
    }


def _put_legend(place: Axes, axes: Axes) -> None:
    """The entanglement cases under everything: beside the points it would push the histogram away."""
    place.axis("off")
    handles, labels = axes.get_legend_handles_labels()
    place.legend(
        handles, labels, loc="upper left", ncols=3, handletextpad=0.2, columnspacing=1.2, borderaxespad=0,
        title="What one DPO step on the pair alone does to the likelihoods", title_fontsize=8, alignment="left",
    )  # fmt: skip


def _draw_histogram(axes: Axes, values: NDArray[np.float64], limits: tuple[float, float], orientation: str) -> None:
    """Counts in bins that look equally wide on the axis, whatever its scale; the negative side is hatched."""
    axis = axes.xaxis if orientation == "vertical" else axes.yaxis
    transform = axis.get_transform()
    low, high = (float(transform.transform(np.array([end]))[0]) for end in limits)
    step = (high - low) / choose_n_bins(len(values))
    edges = step * np.arange(np.floor(low / step), np.ceil(high / step) + 1)
    if isinstance(transform, SymmetricalLogTransform):
        edges = transform.inverted().transform(edges)
    for is_negative in (False, True):
        side = values[(values < 0) == is_negative]
        axes.hist(
            side, bins=list(edges), orientation=orientation, histtype="stepfilled", facecolor="#DDDDDD",  # type: ignore[arg-type]
            edgecolor=MUTED, hatch="/////" if is_negative else "", linewidth=0.8,
        )  # fmt: skip
    axes.axis("off")


def _write_quadrants(axes: Axes, usable: pd.DataFrame) -> None:
    """Number and share of pairs in each corner."""
    for (x_sign, y_sign), (name, n_pairs) in zip(_SIGNS, count_signs(usable).items(), strict=True):
        is_possible = (x_sign, y_sign) != (-1, 1)
        share = percent(n_pairs / len(usable)) if is_possible else "cannot occur"
        text = f"{name}\n{count(n_pairs, 'pair')}, {share}"
        axes.text(
            0.985 if x_sign > 0 else 0.015, 0.985 if y_sign > 0 else 0.015, text, transform=axes.transAxes,
            ha="right" if x_sign > 0 else "left", va="top" if y_sign > 0 else "bottom", fontsize=8, zorder=5,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip


def _compare_with_paper(u: NDArray[np.float64], v: NDArray[np.float64]) -> str:
    ours = {"u > 0": float(np.mean(u > 0)), "v < 0": float(np.mean(v < 0))}
    theirs = (PAPER_SHARES["u_positive_share"], PAPER_SHARES["v_negative_share"])
    shares = "; ".join(
        f"{sign}: {percent(our)} (paper {percent(their)})"
        for (sign, our), their in zip(ours.items(), theirs, strict=True)
    )
    n_zero = int(((u == 0) | (v == 0)).sum())
    zero = f" {count(n_zero, 'pair')} with u or v exactly 0." if n_zero else ""
    return f"{shares}. The paper: SFT Llama-3-8B on UltraFeedback's test set.{zero}"
