"""Measured against predicted change of each pair's log-likelihoods between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    CHOSEN,
    FAINT,
    INK,
    MUTED,
    REJECTED,
    describe_n,
    draw_points,
    make_figure,
    set_note,
    set_title,
    styled,
)
from dpotool.theory.summary import summarize_prediction

_SIDES = {"chosen": (CHOSEN, "o"), "rejected": (REJECTED, "s")}
_COLUMNS = ("chosen_change", "rejected_change", "predicted_chosen_change", "predicted_rejected_change")
_PLACES = {"from": "at the first", "middle": "halfway between them", "to": "at the second"}
_LOPSIDED = 3.0  # ratio of the axes' lengths from which a square would waste most of itself

Values = NDArray[np.float64]


def draw(scene: Scene) -> Drawing:
    """Draws the newest prediction table; raises DpotoolError where there is none."""
    found = scene.need_prediction()
    frame, about = found.frame, found.about | found.summary
    figure = plot_prediction(frame, **found.title, about=about)
    fits = about if all(side in about for side in _SIDES) else summarize_prediction(frame)
    words = "; ".join(f"{side}: {_describe_fit(fits[side])}" for side in _SIDES)
    text = "Measured against predicted change of each pair's log-likelihood, chosen and rejected side by side."
    return Drawing(figure, f"{text} {words}.")


@styled
def plot_prediction(table: pd.DataFrame, *, model: str, data: str, about: Mapping[str, Any] | None = None) -> Figure:
    """Draws a point per pair, chosen and rejected side by side on the same scale, identity and least-squares line.

    Args:
        table: prediction table.
        model, data: for the title.
        about: what the table and its summary say: `from`, `to`, `at`, `distance`, `n_excluded`, and of `chosen` and
            `rejected` the `correlation` and `slope`, which are computed where they are missing.

    Raises DpotoolError when no pair has finite changes.
    """
    about = about or {}
    usable = table[np.isfinite(table[list(_COLUMNS)].to_numpy(dtype=np.float64)).all(axis=1)]
    if usable.empty:
        raise DpotoolError("no pair with finite changes to draw", remedy="Run `dpotool predict` again")
    n_left_out = len(table) - len(usable)
    known = not n_left_out and all(side in about for side in _SIDES)
    found = about if known else summarize_prediction(usable)
    figure = make_figure(8.6, 5.6)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (side, (color, marker)) in zip(panels, _SIDES.items(), strict=True):
        predicted, measured = (usable[f"{p}{side}_change"].to_numpy(dtype=np.float64) for p in ("predicted_", ""))
        draw_points(axes, predicted, measured, color, marker)
        axes.set_title(f"{side}\n{_describe_fit(found[side])}", fontsize=9, color=INK)
        axes.set_xlabel("predicted change of log-likelihood (nats)")
    _set_scale(panels[0], usable)
    for axes, side in zip(panels, _SIDES, strict=True):
        predicted, measured = (usable[f"{p}{side}_change"].to_numpy(dtype=np.float64) for p in ("predicted_", ""))
        _draw_lines(axes, predicted, measured, found[side])
    panels[0].set_ylabel("measured change (nats)")
    panels[0].legend(loc="upper left", frameon=True, framealpha=0.85, edgecolor="none", borderaxespad=0.2)
    n_excluded = int(about.get("n_excluded", 0)) + n_left_out
    set_title(figure, "Measured against predicted displacement", model, data, describe_n(len(usable), n_excluded))
    set_note(figure, _describe(about, found))
    return figure


def _set_scale(axes: Axes, usable: pd.DataFrame) -> None:
    """The same limits for both panels, and along and up unless most would be empty; they hold the origin.

    The panels are about square by the figure's size: with a fixed aspect matplotlib's layout lets titles overlap.
    """
    limits = {}
    for which, names in (("x", _COLUMNS[2:]), ("y", _COLUMNS[:2])):
        values = usable[list(names)].to_numpy(dtype=np.float64)
        limits[which] = min(values.min(), 0.0), max(values.max(), 0.0)
    lengths = {which: high - low or 1.0 for which, (low, high) in limits.items()}
    if max(lengths.values()) <= _LOPSIDED * min(lengths.values()):
        low, high = min(low for low, _ in limits.values()), max(high for _, high in limits.values())
        limits = dict.fromkeys(limits, (low, high))
    for which, (low, high) in limits.items():
        pad = 0.05 * (high - low) or 0.5
        axes.set(**{f"{which}lim": (low - pad, high + pad)})
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _draw_lines(axes: Axes, predicted: Values, measured: Values, found: Mapping[str, Any]) -> None:
    axes.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
    axes.axvline(0, color=FAINT, linewidth=0.8, zorder=1)
    axes.axline((0, 0), slope=1, color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), zorder=3, label="identity")
    if found["slope"] is not None:
        ends = np.array([predicted.min(), predicted.max()])
        line = measured.mean() + found["slope"]["value"] * (ends - predicted.mean())
        axes.plot(ends, line, color=INK, linewidth=1.6, zorder=4, label="least squares")
    axes.plot(
        predicted.mean(), measured.mean(), "P", color="white", markeredgecolor=INK, markersize=8, zorder=5,
        label="mean over pairs",
    )  # fmt: skip


def _describe_fit(found: Mapping[str, Any]) -> str:
    if found["correlation"] is None:
        return "no correlation: too few pairs, or all alike"
    return f"correlation {_say(found['correlation'])}, slope {_say(found['slope'])}"


def _say(interval: Mapping[str, float]) -> str:
    text = f"{interval['value']:.2f} [{interval['ci_low']:.2f}, {interval['ci_high']:.2f}]"
    return text.replace("-", "−")


def _describe(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    parts = []
    if "from" in about:
        parts.append(f"From {about['from']} to {about['to']}, gradients taken {_PLACES[about['at']]}.")
    if "distance" in about:
        parts.append(f"The weights moved by {100 * about['distance']:.2g} % of their norm.")
    shares = " and ".join(f"{100 * found[side]['same_sign']['value']:.0f} % ({side})" for side in _SIDES)
    parts.append(f"Direction right for {shares} of the pairs.")
    parts.append("Log-likelihoods summed over completion tokens. In brackets: 95 % bootstrap intervals over pairs.")
    return " ".join(parts)
