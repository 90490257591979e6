"""One pair, both answers, each token coloured by the change of its log-probability.

Colour carries nothing alone: the change stands below its token, and what fell or rose far is underlined, falls with a
full line and gains with a dashed one. Tokens stand in the order in which the model reads them, from left to right
whatever their script.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import cast

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.patches import Rectangle

from dpotool.compare.diagnosed_run import DiagnosedRun, make_visible
from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import INK, MUTED, format_number, make_figure, set_note, set_title, styled
from dpotool.wording import count

MOST_TOKENS = 400
"""Of an answer; more would make a picture that nobody reads, and the note says how many are left out."""
_WIDTH = 9.0
_MARGIN = 0.12
_SIZE, _SMALL = 8.5, 6.0
_LINE = 0.36
_HEAD = 0.34
_STRONG = 0.5
"""Nats from which a token is underlined."""
_MAP = "PuOr"


@dataclass(frozen=True, slots=True)
class _Box:
    """A token in its place; inches from the left, and which line."""

    left: float
    line: int
    width: float
    text: str
    change: float
    is_alone: bool


def draw(scene: Scene) -> Drawing:
    """Draws the pair asked for, else the worst; raises DpotoolError where there is none of that id."""
    found = scene.need_diagnosis()
    pair_id = choose_pair(found, scene.config.pair)
    sides = {side: found.get_tokens(pair_id, side) for side in ("chosen", "rejected")}
    figure = plot_tokens(sides, pair_id=pair_id, **found.title)
    return Drawing(figure, " ".join([f"Pair {pair_id}.", *(_say_side(side, each) for side, each in sides.items())]))


def choose_pair(found: DiagnosedRun, pair_id: int | None) -> int:
    """Returns the pair asked for, else the worst; raises DpotoolError for one that is not there."""
    if pair_id is None:
        return int(found.pairs.index[0])
    if pair_id not in found.pairs.index:
        raise DpotoolError(
            "this pair was not diagnosed",
            where="--pair",
            got=str(pair_id),
            expected=f"a pair_id of {found.path.name}, such as {int(found.pairs.index[0])}, the worst",
            remedy="Run `dpotool diagnose` on more pairs",
        )
    return pair_id


def _say_side(side: str, tokens: pd.DataFrame) -> str:
    falls = tokens[tokens["change"] < 0].nsmallest(3, "change")
    named = ", ".join(
        f"{make_visible(text)!r} {format_number(change)}"
        for text, change in zip(falls["token"], falls["change"], strict=True)
    )
    most = f"; most on {named}" if named else ""
    total = format_number(tokens["change"].sum())
    return f"The {side} answer changed by {total} nats over {count(len(tokens), 'token')}{most}."


@styled
def plot_tokens(sides: dict[str, pd.DataFrame], *, pair_id: int, model: str, data: str) -> Figure:
    """Draws both answers as rows of tokens; see the module.

    Args:
        sides: tokens of each answer in order, with `token`, `span` and `change` in nats.
        pair_id, model, data: for the title.
    """
    placed = {side: _place(tokens.head(MOST_TOKENS)) for side, tokens in sides.items()}
    n_lines = {side: boxes[-1].line + 1 if boxes else 1 for side, boxes in placed.items()}
    heights = [_HEAD + _LINE * n for n in n_lines.values()]
    largest = max([_STRONG, *(abs(box.change) for boxes in placed.values() for box in boxes)])
    figure = make_figure(_WIDTH, sum(heights) + 1.5)
    grid = figure.subplots(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (side, boxes), height in zip(grid, placed.items(), heights, strict=True):
        axes.set_axis_off()
        axes.set(xlim=(0, _WIDTH - 2 * _MARGIN), ylim=(height, 0))
        total = sides[side]["change"].sum()
        axes.text(
            0, 0.13, f"{side} answer: {format_number(total)} nats over {count(len(sides[side]), 'token')}",
            fontsize=9, fontweight="bold", va="center",
        )  # fmt: skip
        for box in boxes:
            _draw_box(axes, box, largest)
    set_title(figure, f"Pair {pair_id} token by token", model, data)
    n_left_out = sum(max(0, len(tokens) - MOST_TOKENS) for tokens in sides.values())
    set_note(
        figure,
        "Below each token: the change of its log-probability in nats. Orange: it fell; violet: it rose; full "
        f"and dashed lines underline changes of {_STRONG:g} nats and more. A framed token does not occur "
        f"in the other answer at this place. Left to right as the model reads. ↵ is a line break."
        + (f" The last {count(n_left_out, 'token is', 'tokens are')} left out." if n_left_out else ""),
    )
    return figure


def _place(tokens: pd.DataFrame) -> list[_Box]:
    """Sets tokens in lines: a word's further tokens close to its first, a new line after a line break."""
    boxes: list[_Box] = []
    left, line = 0.0, 0
    for text, change, span in zip(tokens["token"], tokens["change"], tokens["span"], strict=True):
        shown = _draw_text(text)
        width = max(_measure(shown, _SIZE), _measure(_tell(change), _SMALL)) + 0.07
        width = min(width, _WIDTH - 2 * _MARGIN)
        gap = 0.0 if left == 0 else 0.09 if not text or text[:1].isspace() else 0.025
        if boxes and left + gap + width > _WIDTH - 2 * _MARGIN:
            left, line, gap = 0.0, line + 1, 0.0
        boxes.append(_Box(left + gap, line, width, shown, float(change), span == "divergent"))
        left += gap + width
        if text and text.endswith("\n"):
            left, line = 0.0, line + 1
    return boxes


def _tell(change: float) -> str:
    return f"{change:+.2f}".replace("-", "−") if abs(change) >= 0.005 else "0"


def _draw_text(text: str | None) -> str:
    """A token as this font can show it: signs for what is not seen, codes for what the font lacks."""
    if not text:
        return make_visible(text)
    known = _list_known_signs()
    seen = [make_visible(sign) for sign in text.strip(" ") or "␣"]
    signs = [each if set(map(ord, each)) <= known else f"⟨U+{ord(each):04X}⟩" for each in seen]
    is_leftwards = any(unicodedata.bidirectional(sign) in ("R", "AL") for sign in text)
    return "".join(reversed(signs) if is_leftwards else signs)  # matplotlib sets letters from left to right


@cache
def _list_known_signs() -> frozenset[int]:
    return frozenset(get_font(fontManager.findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


@cache
def _measuring_figure() -> Figure:
    figure = Figure(dpi=72)
    FigureCanvasAgg(figure)
    return figure


@cache
def _measure(text: str, size: float) -> float:
    """Width of a text in inches."""
    renderer = cast(FigureCanvasAgg, _measuring_figure().canvas).get_renderer()
    font = FontProperties(family="DejaVu Sans", size=size)
    width, _, _ = renderer.get_text_width_height_descent(text, font, ismath=False)
    return float(width) / 72


def _draw_box(axes: Axes, box: _Box, largest: float) -> None:
    top = _HEAD + _LINE * box.line
    color = colormaps[_MAP](TwoSlopeNorm(0, -1.7 * largest, 1.7 * largest)(box.change))  # pale enough for black text
    axes.add_patch(
        Rectangle(
            (box.left, top), box.width, 0.19, facecolor=color, linewidth=0.7,
            edgecolor=INK if box.is_alone else "none",
        )
    )  # fmt: skip
    middle = box.left + box.width / 2
    axes.text(middle, top + 0.098, box.text, fontsize=_SIZE, ha="center", va="center_baseline", parse_math=False)
    weight = "bold" if abs(box.change) >= _STRONG else "normal"
    axes.text(
        middle, top + 0.265, _tell(box.change), fontsize=_SMALL, ha="center", va="center", fontweight=weight,
        color=INK if weight == "bold" else MUTED,
    )  # fmt: skip
    if abs(box.change) >= _STRONG:
        axes.plot(
            [box.left, box.left + box.width], [top + 0.212] * 2, color=INK, linewidth=1.4,
            linestyle="-" if box.change < 0 else (0, (2, 1.2)), solid_capstyle="butt",
        )  # fmt: skip
