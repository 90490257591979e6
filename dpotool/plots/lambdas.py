"""An axis of lambda: numbers that do not overlap, and marks at the values that matter."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dpotool.plots.theme import COLORS, INK, MUTED

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
