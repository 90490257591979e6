"""A measure known before training against the change of the chosen answer, a point per pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpotool.compare.diagnosis import add_head_risk
from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    CHOSEN,
    INK,
    MUTED,
    REJECTED,
    describe_n,
    draw_points,
    make_figure,
    set_note,
    set_title,
    styled,
    wrap,
)
from dpotool.stats.intervals import format_interval

_N_SHOWN = 2
_KINDS = (
    ("rank_correlation", "o", CHOSEN, CHOSEN, "as it is", 0.12),
    ("given", "D", "white", REJECTED, "given the answer's length", -0.18),
)


def draw(scene: Scene) -> Drawing:
    """Draws the risk measures of a diagnosis; raises DpotoolError where there are none."""
    found = scene.need_diagnosis()
    known = {name: each for name, each in (found.summary["risks"] or {}).items() if each["rank_correlation"]}
    if not known:
        raise DpotoolError(
            "no measure ranks these pairs: there are too few of them, or none differs",
            where=str(found.path),
            remedy="Run `dpotool diagnose` on more pairs",
        )
    order = sorted(known, key=lambda name: -abs(known[name]["rank_correlation"]["value"]))
    risks = {name: known[name] for name in order}
    figure = plot_risk(add_head_risk(found.pairs), risks, **found.title)
    texts = [f"{each['called']} {format_interval(each['rank_correlation'], '+z.2f')}" for each in risks.values()]
    return Drawing(
        figure, f"Rank correlation with the change of chosen answers, the strongest first: {', '.join(texts)}."
    )


@styled
def plot_risk(pairs: pd.DataFrame, risks: Mapping[str, Mapping[str, Any]], *, model: str, data: str) -> Figure:
    """Draws each measure's rank correlations with intervals, and the first two measures against the outcome.

    Args:
        pairs: diagnosed pairs, with a column for each measure.
        risks: column -> entry of a diagnosis's `risks`, the strongest first.
        model, data: for the title.
    """
    shown = list(risks)[:_N_SHOWN]
    figure = make_figure(11.0, 1.9 + 0.3 * max(7, len(risks)))
    axes = figure.subplots(1, 1 + len(shown), width_ratios=(1.25, *[1] * len(shown)), squeeze=False)[0]
    _draw_correlations(axes[0], list(risks.values()))
    for panel, name in zip(axes[1:], shown, strict=True):
        _draw_pairs(panel, pairs[name], pairs["chosen_displacement"], risks[name]["called"])
    axes[1].set_ylabel("change of log π(chosen), nats")
    set_title(figure, "Measures known before training and the result of training", model, data, describe_n(len(pairs)))
    set_note(
        figure,
        "Left of zero: the higher the measure, the further the chosen answer fell. Lines: 95 % intervals over pairs. "
        "Open marks: the correlation given the length of the answer, as displacement grows with length.",
    )
    return figure


def _draw_correlations(axes: Axes, risks: Sequence[Mapping[str, Any]]) -> None:
    places = np.arange(len(risks))[::-1].astype(float)
    for kind, marker, face, edge, label, offset in _KINDS:
        known = [(place, each[kind]) for place, each in zip(places, risks, strict=True) if each[kind] is not None]
        if not known:
            continue
        values = np.array([[each["value"], each["ci_low"], each["ci_high"]] for _, each in known])
        rows = np.array([place + offset for place, _ in known])
        axes.hlines(rows, values[:, 1], values[:, 2], color=edge, linewidth=1.2)
        axes.plot(values[:, 0], rows, marker, color=edge, markerfacecolor=face, markersize=5, linestyle="", label=label)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_yticks(places, [wrap(each["called"], 30, 2) for each in risks])
    axes.set_xlim(-1.02, 1.02)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("rank correlation with the change of log π(chosen)")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)


def _draw_pairs(axes: Axes, measure: pd.Series, change: pd.Series, called: str) -> None:
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    draw_points(axes, measure.to_numpy(), change.to_numpy(), MUTED)
    axes.set_xlabel(wrap(called, 34, 2))
    axes.ticklabel_format(axis="x", scilimits=(-3, 4), useMathText=True)
