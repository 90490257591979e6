"""The look of every picture, its axis of lambda, and writing it to disk.

Figures are made without pyplot, so nothing global is left behind and no display is needed. Colour is never the only
carrier: lines differ in dash, points in shape, areas in hatching; the palette is Okabe and Ito's, safe for colour-blind
readers and told apart in grey.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.runs.atomic import atomic_path
from dpotool.wording import count

FORMATS = ("png", "pdf", "svg")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5C5C5C")
CHOSEN, REJECTED, MARGIN = COLORS[:3]
INK, MUTED, FAINT = "#1A1A1A", "#5C5C5C", "#BFBFBF"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
HATCHES = {"chosen": "", "rejected": "/////", "margin": "....."}
MANY = 3000
"""Points from which they are drawn small, and as one image in vector formats."""
_POINTS = {500: (20, 0.6, 0.3), MANY: (8, 0.3, 0.0), math.inf: (6, 0.22, 0.0)}
"""Number of points up to which they are drawn so -> size, opacity, width of the edge."""

_STYLE = {
    **seaborn.axes_style("ticks"),
    **seaborn.plotting_context("paper"),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "text.parse_math": False,  # a label with $ in it is a label, and no formula
    "pdf.fonttype": 42,  # text stays text in the file
    "svg.hashsalt": "dpotool",  # the same picture is the same file
}
_NO_DATES = {"png": {"Software": None}, "pdf": {"CreationDate": None, "ModDate": None}, "svg": {"Date": None}}

P = ParamSpec("P")


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws a picture under dpotool's style and leaves matplotlib's settings as they were."""

    @functools.wraps(plot)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return plot(*args, **kwargs)

    return draw


def make_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of that many inches whose parts make room for each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def make_panels(n: int, *, width: float, height: float, first_height: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Returns a figure with n panels on common axes, at most three in a row; the lowest of a column have numbers.

    Args:
        width, height: inches a panel.
        first_height: inches a panel where there is only one.
    """
    n_columns = min(3, n)
    n_rows = math.ceil(n / n_columns)
    figure = make_figure(
        max(4.6, width * n_columns), 1.3 + (first_height if n == 1 and first_height else height) * n_rows
    )
    grid = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[n:]:
        axes.set_visible(False)
    for position, axes in enumerate(grid.flat[:n]):
        axes.tick_params(labelbottom=position + n_columns >= n)  # nothing below
    return figure, list(grid.flat[:n])


def set_title(figure: Figure, what: str, *subject: str) -> None:
    """Writes two lines above everything: what is shown, in bold, then model, data and n.

    `what` is plain words: bold within a title is mathematics to matplotlib, which spaces colons its own way, and sets a
    minus for a hyphen unless it is U+2010.
    """
    line = ", ".join(part for part in subject if part)
    bold = r"$\bf{" + what.replace(" ", r"\ ").replace("-", "\N{HYPHEN}") + "}$"
    plain = shorten(line, _characters_across(figure)).replace("$", r"\$")
    figure.suptitle(f"{bold}\n{plain}", fontsize=10, x=0.01, ha="left", parse_math=True)


def set_note(figure: Figure, text: str) -> None:
    """Writes small print below everything, wrapped to the figure's width; a number stays with its percent sign."""
    kept = text.replace(" %", "\N{NO-BREAK SPACE}%")
    wrapped = textwrap.fill(kept, _characters_across(figure, size=7.5)).replace("\N{NO-BREAK SPACE}", " ")
    figure.supxlabel(wrapped, fontsize=7.5, color=MUTED, x=0.01, ha="left")


def draw_points(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], color: str, marker: str = "o") -> None:
    """Draws a point per pair; the more there are, the smaller and paler."""
    size, alpha, edge = next(look for most, look in _POINTS.items() if len(x) <= most)
    axes.scatter(
        x, y, s=size, marker=marker, color=color, alpha=alpha, linewidths=edge, edgecolors="white",
        rasterized=len(x) > MANY, zorder=2,
    )  # fmt: skip


def describe_n(n: int, n_excluded: int = 0) -> str:
    """Returns "n = 300 pairs" or "n = 300 pairs, 4 left out"."""
    return f"n = {count(n, 'pair')}" + (f", {n_excluded:,} left out" if n_excluded else "")


def label_row(axes: Axes, run: ScoredRun, runs: Sequence[ScoredRun], *, is_recommended: bool = False) -> None:
    """Names a row on its left, in bold if it is recommended, with "n = 300 (4 left out)" where runs differ in it."""
    text, n_excluded = wrap(run.label, 20), sum(run.excluded.values())
    if len({(each.n, sum(each.excluded.values())) for each in runs}) > 1:
        text += f"\nn = {run.n:,}" + (f" ({n_excluded:,} left out)" if n_excluded else "")
    if is_recommended:
        text += "\nrecommended"
    weight = "bold" if is_recommended else "normal"
    axes.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=6, fontweight=weight)


def join_rows(rows: Sequence[Axes]) -> None:
    """Leaves the lowest of rows on a common x axis its line and ticks, and none of them a y axis."""
    for axes in rows:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    for axes in rows[:-1]:
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(bottom=False)


def title_panel(axes: Axes, label: str, *, is_recommended: bool = False) -> None:
    """Names a panel above it, in bold if it is recommended."""
    mark = "\nrecommended" if is_recommended else ""
    axes.set_title(wrap(label, 34, 2) + mark, fontsize=9, fontweight="bold" if mark else "normal")


def describe_ns(runs: Sequence[ScoredRun]) -> str:
    """Returns the n of several runs for a title: one number if they agree, else that they do not."""
    counts = [(run.n, sum(run.excluded.values())) for run in runs]
    if len(set(counts)) == 1:
        return describe_n(*counts[0])
    low, high = min(n for n, _ in counts), max(n for n, _ in counts)
    ns = f"n = {count(low, 'pair')} each" if low == high else f"n differs: {low:,} to {count(high, 'pair')}"
    n_excluded = sum(left_out for _, left_out in counts)
    return ns + (f", {n_excluded:,} left out in all" if n_excluded else "")


def percent(share: float) -> str:
    """Returns "79.8 %"."""
    return f"{100 * share:.1f} %"


def shorten(text: str, width: int) -> str:
    """Returns the text, or if it is longer than `width` its beginning and end with an ellipsis between them."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def wrap(label: str, width: int, n_lines: int = 3) -> str:
    """Returns a label over at most `n_lines` lines, broken after a space, slash, dash or dot where there is one.

    What would take more lines loses its middle, not its end: run folders differ at the end.
    """
    for length in range(width * n_lines, 0, -1):
        lines = [""]
        for part in re.findall(r"[^\s/_.-]*[\s/_.-]?", shorten(label, length)):
            if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
                lines.append("")
            lines[-1] += part
        if len(lines) <= n_lines:
            break
    return "\n".join(line.strip() for line in lines)


def format_number(value: float) -> str:
    """Returns a number with four figures at most and a true minus sign: −105.3, 0.955."""
    return (f"{value:.1f}" if abs(value) >= 10 else f"{value:z.3f}").replace("-", "−")


def format_significant(value: float, digits: int = 3) -> str:
    """Returns that many figures of a number of any size: 8.40, −1,270, 4.84·10⁸, 1.9·10⁻⁴."""
    power = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}")))) if value else 0
    if -1 <= power <= 5:
        places = digits - 1 - power
        return f"{round(value, places):,.{max(0, places)}f}".replace("-", "−")
    mantissa = f"{value / 10**power:.{digits - 1}f}".replace("-", "−")
    return f"{mantissa}·10{str(power).translate(_RAISED)}"


def format_power(value: float) -> str:
    """Returns a power of ten as an axis says it: 10⁴, −10⁻², 0. Formulas are not set (`text.parse_math`)."""
    if value == 0:
        return "0"
    return f"{'−' if value < 0 else ''}10{str(round(math.log10(abs(value)))).translate(_RAISED)}"


def choose_n_bins(n: int) -> int:
    """Bins for a histogram of n values: about 1.6 times its root, between 12 and 60."""
    return int(min(60, max(12, 1.6 * n**0.5)))


def ring_recommended(axes: Axes, x: float, y: float) -> None:
    """Draws a wide ring around the point of the recommended run, and a small one in the legend."""
    ring: dict[str, Any] = {
        "markerfacecolor": "none",
        "markeredgecolor": COLORS[3],
        "markeredgewidth": 2.2,
        "linestyle": "",
    }
    axes.plot(x, y, "o", markersize=17, zorder=3, **ring)
    axes.plot([], [], "o", markersize=8, label="recommended", **ring)


def put_legend_above(axes: Axes, n_columns: int) -> None:
    """Puts a legend above the right end of the axes, where it hides no point or bar; none if nothing is named."""
    if not axes.get_legend_handles_labels()[0]:
        return
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=n_columns, borderaxespad=0.2, columnspacing=1.2)


def save_figure(figure: Figure, stem: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Writes `<stem>.<format>` for each format, atomically; returns the paths.

    Raises DpotoolError for a format that is not known, before anything is written, or a folder that cannot be written.
    """
    for name in formats:
        if name not in FORMATS:
            raise DpotoolError(f"unknown picture format {name!r}", remedy=suggest_nearest(name, FORMATS))
    paths = []
    for name in formats:
        path = Path(f"{stem}.{name}")
        with mpl.rc_context(_STYLE), atomic_path(path) as temporary:
            figure.savefig(temporary, format=name, dpi=200, metadata=_NO_DATES[name])
        paths.append(path)
    return paths


def _characters_across(figure: Figure, size: float = 10) -> int:
    """How many characters of `size` points fit across; DejaVu Sans takes about 0.54 of its size a character."""
    return int(figure.get_figwidth() * 72 / (0.54 * size))


DPO = 1.0
RECOMMENDED = COLORS[3]
_ROOM = 0.055  # of the axis, that a number needs


def set_lambda_ticks(axes: Axes, lambdas: NDArray[np.float64]) -> None:
    """Sets a tick at every lambda, with its number unless that would overlap the one before; DPO always has one."""
    low, high = float(lambdas.min()), float(lambdas.max())
    room = _ROOM * (high - low)
    numbered: list[float] = []
    for value in sorted(lambdas, reverse=True):
        if not numbered or numbered[-1] - value >= room:
            numbered.append(float(value))
    axes.set_xticks(numbered, [f"{value:g}" for value in numbered])
    axes.set_xticks(sorted(lambdas), minor=True)
    pad = 0.06 * (high - low) or 0.05
    axes.set_xlim(low - pad, high + pad)


def mark_lambdas(axes: Axes, recommended: float | None, *, names: str = "both") -> None:
    """Draws a dashed line at DPO and a dotted one at the recommended lambda, named at the top where there is room.

    Args:
        names: `both`; `recommended`, where the axis ends at DPO and there is no room beyond it; or `none`.
    """
    axes.axvline(DPO, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    if recommended is not None and recommended != DPO:
        axes.axvline(recommended, color=RECOMMENDED, linewidth=1.4, linestyle=(0, (1, 1)), zorder=1)
    if names == "none":
        return
    if recommended is not None:
        text = "recommended: DPO" if recommended == DPO else f"recommended λ = {recommended:g}"
        _name(axes, recommended, text, is_left=recommended <= DPO)
    if names == "both" and recommended != DPO:
        _name(axes, DPO, "DPO", is_left=recommended is not None and recommended > DPO)


def _name(axes: Axes, value: float, text: str, *, is_left: bool) -> None:
    axes.annotate(
        text, (value, 1), xycoords=("data", "axes fraction"), xytext=(-3 if is_left else 3, -2),
        textcoords="offset points", ha="right" if is_left else "left", va="top", fontsize=8, color=INK, zorder=5,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip
