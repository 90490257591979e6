"""How the mean log-likelihoods of chosen and rejected moved while training, from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import CHOSEN, INK, REJECTED, make_panels, set_note, set_title, styled, title_panel
from dpotool.wording import count

_SIDES: dict[str, dict[str, Any]] = {
    "chosen": {"color": CHOSEN, "marker": "o", "linestyle": "-"},
    "rejected": {"color": REJECTED, "marker": "s", "linestyle": (0, (5, 2))},
}
_SMOOTH_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Ends:
    """Where one logged number began and ended."""

    steps: tuple[int, int]
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Line:
    """One side of one run over steps, nats."""

    batches: pd.Series
    """Means over training batches: other pairs at every step."""
    evaluated: pd.Series
    """Means over the evaluation set: the same pairs every time."""

    @property
    def main(self) -> pd.Series:
        """What is drawn bold: the evaluations, or without any a moving average over a tenth of the batches."""
        if len(self.evaluated):
            return self.evaluated
        width = max(1, round(_SMOOTH_SHARE * len(self.batches)))
        return self.batches.rolling(width, center=True, min_periods=1).mean()


def draw(scene: Scene) -> Drawing:
    """Draws what the runs logged, scored or not; raises DpotoolError when none logged any log-likelihood."""
    logs, metrics = scene.list_logs(), scene.read_metrics()
    if not metrics:
        scene.need_runs()
        where = str(scene.everything[0].path)
        raise DpotoolError("no metrics.jsonl here", where=where, remedy="Only runs of `dpotool train` log a trajectory")
    manifests = {label: folder.read_manifest() for label, folder in logs.items()}
    betas = {label: manifest["config"].get("beta") for label, manifest in manifests.items()}
    counts = {(manifest["data"].get("eval") or {}).get("n_pairs") for manifest in manifests.values()}
    title = scene.title if scene.runs else {"model": ", ".join(metrics), "data": ""}
    n_pairs = counts.pop() if len(counts) == 1 else None
    recommended = scene.recommended if scene.runs else None
    figure = plot_trajectory(metrics, **title, betas=betas, n_eval_pairs=n_pairs, recommended=recommended)
    return Drawing(
        figure, " ".join(["Log-likelihoods over optimiser steps, a panel per run.", *_put_in_words(metrics)])
    )


def read_ends(rows: pd.DataFrame, name: str) -> Ends | None:
    """Returns the first and last value of `name` that was logged, of evaluations where there are any; None without."""
    found = [series for prefix in ("eval_", "") if len(series := _read_column(rows, f"{prefix}{name}"))]
    if not found:
        return None
    steps, values = found[0].index.astype(int), found[0].astype(float)
    return Ends((int(steps[0]), int(steps[-1])), float(values.iloc[0]), float(values.iloc[-1]))


def describe_source(rows: pd.DataFrame) -> str:
    """Returns what the logged log-likelihoods are means over: 'evaluation pairs' or 'training batches'."""
    return "evaluation pairs" if len(_read_column(rows, "eval_logps/chosen")) else "training batches"


def _put_in_words(metrics: Mapping[str, pd.DataFrame]) -> list[str]:
    sentences = []
    for label, rows in metrics.items():
        moves = [
            f"log π({side}) from {ends.first:.2f} at step {ends.steps[0]} to {ends.last:.2f} at step {ends.steps[1]}"
            for side in _SIDES
            if (ends := read_ends(rows, f"logps/{side}"))
        ]
        sentences.append(f"{label}, means over {describe_source(rows)}: {' and '.join(moves) or 'none logged'}.")
    return sentences


@styled
def plot_trajectory(
    metrics: Mapping[str, pd.DataFrame],
    *,
    model: str,
    data: str,
    betas: Mapping[str, float | None] | None = None,
    n_eval_pairs: int | None = None,
    recommended: str | None = None,
) -> Figure:
    """Draws chosen and rejected over optimiser steps, a panel per run, all on the same axes.

    Evaluations are of the same pairs every time: they are drawn bold. Means over training batches, of other pairs at
    every step, are thin, and bold only as a moving average where nothing was evaluated. Drawn is the change from the
    reference, which is rewards over beta, where every run logged rewards and its beta is known; else log-likelihoods
    themselves. The bold lines decide how far the axis reaches.

    Args:
        metrics: label -> the rows of one run's metrics.jsonl.
        model, data: for the title.
        betas: label -> scale of the rewards that the run logged.
        n_eval_pairs: pairs in the evaluation set, for the title.
        recommended: label of the run to mark.

    A run that logged neither is named below the panels. Raises DpotoolError when none logged any.
    """
    without = [label for label, rows in metrics.items() if read_ends(rows, "logps/chosen") is None]
    if len(without) == len(metrics):
        raise DpotoolError("no logps/chosen logged", where=without[0], remedy="Only preference losses log it")
    shown = {label: rows for label, rows in metrics.items() if label not in without}
    scales = {label: (betas or {}).get(label) for label in shown}
    is_change = all(scales[label] and read_ends(rows, "rewards/rejected") for label, rows in shown.items())
    lines = {label: _read_lines(rows, scales[label] if is_change else None) for label, rows in shown.items()}
    figure, panels = make_panels(len(lines), width=3.3, height=2.4, first_height=3.6)
    for axes, (label, sides) in zip(panels, lines.items(), strict=True):
        _draw_run(axes, sides, is_change=is_change)
        title_panel(axes, label, is_recommended=label == recommended)
        if axes.xaxis.get_tick_params()["labelbottom"]:
            axes.set_xlabel("optimiser step")
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel("mean change of log π\nfrom the reference (nats)" if is_change else "mean log π (nats)")
    panels[0].xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # shared by all; there are no half steps
    n_cut = _set_limits(panels[0], [line for sides in lines.values() for line in sides.values()], is_change=is_change)
    n_logged = sum(len(rows) for rows in shown.values())
    n = f"n = {count(n_eval_pairs, 'evaluated pair')}" if n_eval_pairs else f"n = {count(n_logged, 'logged row')}"
    set_title(figure, "Likelihoods while training", model, data, n)
    not_shown = f" Not shown, as they logged no logps/chosen: {', '.join(without)}." if without else ""
    set_note(figure, _describe([line for sides in lines.values() for line in sides.values()], n_cut) + not_shown)
    return figure


def _read_column(rows: pd.DataFrame, name: str) -> pd.Series:
    """One logged number over steps, without the rows that do not have it."""
    if name not in rows or "step" not in rows:
        return pd.Series(dtype=np.float64)
    known = rows[["step", name]].apply(pd.to_numeric, errors="coerce").dropna()
    return known.set_index("step")[name].sort_index(kind="stable")


def _read_lines(rows: pd.DataFrame, beta: float | None) -> dict[str, Line]:
    """Returns both sides: change from the reference where beta is given, else log-likelihood."""
    name, scale = ("rewards", beta) if beta else ("logps", 1.0)
    return {
        side: Line(_read_column(rows, f"{name}/{side}") / scale, _read_column(rows, f"eval_{name}/{side}") / scale)
        for side in _SIDES
    }


def _draw_run(axes: Axes, sides: Mapping[str, Line], *, is_change: bool) -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if is_change:
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    for side, line in sides.items():
        style, main = _SIDES[side], line.main
        axes.plot(line.batches.index, line.batches, color=style["color"], linewidth=0.6, alpha=0.45, zorder=2)
        is_evaluated = len(line.evaluated) > 0
        axes.plot(
            main.index, main, color=style["color"], linestyle=style["linestyle"], linewidth=2.2, zorder=4,
            marker=style["marker"] if is_evaluated else None, markersize=5.5, markeredgecolor=INK, markeredgewidth=0.6,
        )  # fmt: skip
        if is_evaluated and not is_change and main.index[0] == 0:  # evaluated before the first step
            axes.axhline(main.iloc[0], color=style["color"], linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=1)
    _name_lines(axes, sides)


def _name_lines(axes: Axes, sides: Mapping[str, Line]) -> None:
    """Writes chosen and rejected where their bold lines end, the higher one above its line, the lower one below."""
    ends = {side: line.main for side, line in sides.items() if len(line.main)}
    highest = max(ends, key=lambda side: float(ends[side].iloc[-1]), default=None)
    for side, main in ends.items():
        is_upper = side == highest
        axes.annotate(
            f"{side} {main.iloc[-1]:+.2f}".replace("-", "−"), (float(main.index[-1]), float(main.iloc[-1])),
            xytext=(0, 7 if is_upper else -7), textcoords="offset points", ha="right",
            va="bottom" if is_upper else "top", color=_SIDES[side]["color"], fontweight="bold", fontsize=8.5, zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _set_limits(axes: Axes, lines: Sequence[Line], *, is_change: bool) -> int:
    """Lets the axis hold every bold line with room for its name; returns how many batch means lie beyond it."""
    main = np.concatenate([line.main.to_numpy(dtype=np.float64) for line in lines])
    batches = np.concatenate([line.batches.to_numpy(dtype=np.float64) for line in lines])
    ends = [main.min(), main.max(), *([0.0] if is_change else [])]
    low, high = min(ends), max(ends)
    pad = 0.2 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)
    return int(((batches < low - pad) | (batches > high + pad)).sum())


def _describe(lines: Sequence[Line], n_cut: int) -> str:
    parts = []
    if any(len(line.evaluated) for line in lines):
        parts.append("Bold: evaluations, on the same pairs every time.")
    if any(len(line.batches) for line in lines):
        parts.append("Thin: means over training batches, other pairs at every step.")
    if any(len(line.batches) and not len(line.evaluated) for line in lines):
        parts.append("Bold without points: a moving average over them.")
    if n_cut:
        parts.append(f"{count(n_cut, 'batch mean')} beyond the axis.")
    return " ".join(parts)
