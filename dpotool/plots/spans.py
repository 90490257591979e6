"""A displacement taken apart: by which tokens moved, and by their place in the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpotool.compare.diagnosis import SPAN_TEXTS, name_positions
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    CHOSEN,
    HATCHES,
    INK,
    MUTED,
    REJECTED,
    describe_n,
    make_figure,
    put_legend_above,
    set_note,
    set_title,
    styled,
)
from dpotool.stats.intervals import format_interval

SIDES = {"chosen": CHOSEN, "rejected": REJECTED}
_HEIGHT = 0.36


def draw(scene: Scene) -> Drawing:
    """Draws the decomposition of a diagnosis; raises DpotoolError where there is none."""
    found = scene.need_diagnosis()
    figure = plot_spans(found.summary, **found.title)
    parts = [
        f"{side} answers {format_interval(found.summary[side]['displacement'], '+z.2f')} nats: "
        + ", ".join(
            f"{text} {format_interval(found.summary[side]['spans'][span], '+z.2f')}"
            for span, text in SPAN_TEXTS.items()
        )
        for side in SIDES
    ]
    return Drawing(figure, f"Change from the reference by tokens. {'; '.join(parts)}.".replace("chosen", "Chosen", 1))


@styled
def plot_spans(summary: Mapping[str, Any], *, model: str, data: str) -> Figure:
    """Draws the parts of both answers' mean change, by span with intervals on the left, by position on the right.

    Args:
        summary: of a diagnosis (`compare.diagnosis.summarize_diagnosis`), with a reference.
        model, data: for the title.
    """
    figure = make_figure(9.6, 4.0)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    for number, (side, color) in enumerate(SIDES.items()):
        offset = (0.5 - number) * _HEIGHT
        _draw_spans(left, summary[side], side, color, offset)
        _draw_positions(right, summary[side], side, color, -offset)  # chosen left of rejected
    left.set_yticks([*range(len(SPAN_TEXTS), 0, -1), 0], [*SPAN_TEXTS.values(), "all tokens"])
    left.axvline(0, color=INK, linewidth=0.8)
    left.axhline(0.5, color=MUTED, linewidth=0.7)
    left.set_xlabel("part of the change of log π (nats)")
    put_legend_above(left, 2)
    right.axhline(0, color=INK, linewidth=0.8)
    right.set_xlabel("place in the answer (tokens)")
    right.set_ylabel("part of the change (nats)")
    most = max((summary[side]["positions"] for side in SIDES), key=len)
    right.set_xticks(range(len(most)), [name_positions(row) for row in most], rotation=35, ha="right")
    set_title(figure, "On which tokens the answers moved", model, data, describe_n(summary["n"]))
    set_note(
        figure,
        "The parts of an answer add up to its change, by tokens and by place. The percentages beside the bars "
        "are shares "
        "of the answers' tokens. Lines: 95 % intervals over pairs.",
    )
    return figure


def _draw_spans(axes: Axes, side: Mapping[str, Any], name: str, color: str, offset: float) -> None:
    parts = [*(side["spans"][span] for span in SPAN_TEXTS), side["displacement"]]
    places = np.arange(len(parts) - 1, -1, -1) + offset
    means = np.array([part["mean"] for part in parts])
    ends = np.array([[part["mean"] - part["ci_low"], part["ci_high"] - part["mean"]] for part in parts]).T
    axes.barh(
        places, means, height=_HEIGHT, color=color, hatch=HATCHES[name], edgecolor="white", linewidth=0.5,
        xerr=np.clip(np.nan_to_num(ends), 0, None), error_kw={"elinewidth": 1.0, "ecolor": INK, "capsize": 2},
        label=f"{name} answers",
    )  # fmt: skip
    for part, place in zip(parts, places, strict=True):
        end = max(0.0, part["mean"], part["ci_high"] if np.isfinite(part["ci_high"]) else 0.0)
        share = f" ({100 * part['share_of_tokens']:.0f} %)" if "share_of_tokens" in part else ""
        axes.annotate(
            f"{part['mean']:+.2f}{share}".replace("-", "−"), (end, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=7.5, color=INK, annotation_clip=False,
        )  # fmt: skip
    axes.margins(x=0.06)


def _draw_positions(axes: Axes, side: Mapping[str, Any], name: str, color: str, offset: float) -> None:
    parts = [row["part"] for row in side["positions"]]
    axes.bar(
        np.arange(len(parts)) + offset, parts, width=_HEIGHT, color=color, hatch=HATCHES[name], edgecolor="white",
        linewidth=0.5,
    )  # fmt: skip
