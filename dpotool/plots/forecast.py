"""What one step is predicted to do to other pairs for each lambda, and what training with that lambda then did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from dpotool.compare.runs_table import tabulate_runs
from dpotool.compare.theory_check import measure_outcomes, select_forecast
from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import FoundTable, Scene
from dpotool.plots.theme import (
    CHOSEN,
    DASHES,
    INK,
    MARGIN,
    MUTED,
    REJECTED,
    describe_n,
    make_figure,
    mark_lambdas,
    percent,
    set_lambda_ticks,
    set_note,
    set_title,
    styled,
)
from dpotool.wording import count

_STEPS = {"sgd": "Forecast from a step of gradient descent", "adamw": "Forecast from AdamW's first step"}
_CHANGES: dict[str, tuple[str, str, Any, str]] = {
    "chosen_change": ("chosen", CHOSEN, DASHES[0], "o"),
    "rejected_change": ("rejected", REJECTED, DASHES[1], "s"),
}
_ACCURACY: dict[str, tuple[str, str, Any, str]] = {"reward_accuracy": ("accuracy", MARGIN, DASHES[0], "^")}
_IN_SUMMARY = {"reward_accuracy": ("accuracy", "value")}
_APART = 0.004  # on the axis of lambda

Values = NDArray[np.float64]


def draw(scene: Scene) -> Drawing:
    """Draws the newest forecast, and what the runs of its model measured; raises DpotoolError without a forecast."""
    found = scene.need_theory("advice")
    advice, outcomes = found.summary["advice"], find_outcomes(scene, found)
    figure = plot_forecast(advice, **found.title, outcomes=outcomes)
    text = (
        "Change of chosen and rejected log-likelihoods, in nats per nat of margin that DPO gains, and reward accuracy, "
        "by lambda."
    )
    return Drawing(figure, f"{text} {put_in_words(advice, outcomes)}")


def find_outcomes(scene: Scene, found: FoundTable) -> pd.DataFrame | None:
    """Returns what the runs of the model that a forecast is of measured (`measure_outcomes`); None without any run."""
    if not scene.runs:
        return None
    return measure_outcomes(
        select_forecast(found.about, tabulate_runs(scene.runs)), {run.label: run for run in scene.runs}
    )


def put_in_words(advice: Mapping[str, Mapping[str, Any]], outcomes: pd.DataFrame | None) -> str:
    """Returns the forecast of each optimizer and what runs measured, by lambda."""
    parts = []
    for optimizer, forecast in advice.items():
        grid = forecast.get("grid") or {}
        rows = [
            (
                f"λ={key}", grid[key]["chosen_change"]["mean"], grid[key]["rejected_change"]["mean"],
                grid[key]["accuracy"]["value"],
            )
            for key in sorted(grid, key=float)
        ]  # fmt: skip
        if rows:
            parts.append(f"Forecast from {optimizer}'s step: {'; '.join(_describe_row(*row) for row in rows)}.")
    if outcomes is not None and len(outcomes):
        columns = ["label", "chosen_change", "rejected_change", "reward_accuracy"]
        rows = list(outcomes[columns].itertuples(index=False, name=None))
        parts.append(f"Measured: {'; '.join(_describe_row(*row) for row in rows)}.")
    return " ".join(parts)


def _describe_row(what: str, chosen: float, rejected: float, accuracy: float) -> str:
    return f"{what} chosen {chosen:+.2f}, rejected {rejected:+.2f}, accuracy {percent(accuracy)}"


@styled
def plot_forecast(
    advice: Mapping[str, Mapping[str, Any]], *, model: str, data: str, outcomes: pd.DataFrame | None = None
) -> Figure:
    """Draws predicted changes and reward accuracy against lambda, a column per optimizer, outcomes as points on top.

    Args:
        advice: entry of a theory summary: optimizer -> forecast, by lambda.
        model, data: for the title.
        outcomes: `measure_outcomes` of the runs of a sweep; None where no run was given, empty where none can be
            compared.

    Raises DpotoolError when the forecast has no scale for any optimizer.
    """
    known = {name: forecast for name, forecast in advice.items() if forecast.get("grid")}
    if not known:
        reason = next((forecast.get("reason", "") for forecast in advice.values()), "")
        raise DpotoolError(
            f"no forecast to draw: {reason}".rstrip(" .:"), remedy="Run `dpotool theory-gap` on more pairs"
        )
    figure = make_figure(1.2 + 4.0 * len(known), 6.4)
    grid = figure.subplots(2, len(known), sharex="col", sharey="row", squeeze=False, height_ratios=(3, 2))
    for column, (optimizer, forecast) in zip(grid.T, known.items(), strict=True):
        column[0].set_title(_STEPS.get(optimizer, f"Forecast: {optimizer}"), fontsize=9)
        _draw_column(column[0], column[1], forecast, outcomes)
    grid[0, 0].set_ylabel("mean change of log-likelihood\n(nats per nat of margin DPO gains)")
    grid[1, 0].set_ylabel("reward accuracy (margin > 0)")
    grid[1, 0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    _leave_room(grid[0, 0])
    is_measured = outcomes is not None and len(outcomes) > 0
    boxed: dict[str, Any] = {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}  # a marked lambda may lie below
    grid[0, 0].legend(handles=_make_handles(is_measured), loc="lower left", ncols=2, handlelength=2.8, **boxed)
    n = max(int(forecast["n"]) for forecast in known.values())
    set_title(figure, "Predicted change and accuracy against λ", model, data, describe_n(n))
    set_note(figure, _describe(outcomes))
    return figure


def _draw_column(changes: Axes, accuracy: Axes, forecast: Mapping[str, Any], outcomes: pd.DataFrame | None) -> None:
    grid = forecast["grid"]
    keys = sorted(grid, key=float)
    lambdas = np.array([float(key) for key in keys])
    for axes, curves in ((changes, _CHANGES), (accuracy, _ACCURACY)):
        for name, style in curves.items():
            entry, key = _IN_SUMMARY.get(name, (name, "mean"))
            _draw_predicted(axes, lambdas, [grid[one][entry] for one in keys], key, style)
            if outcomes is not None and len(outcomes):
                _draw_measured(axes, outcomes, name, style)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        mark_lambdas(axes, forecast["recommended_lambda"], names="recommended" if axes is changes else "none")
    changes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    if "1" in grid:
        accuracy.axhline(grid["1"]["accuracy"]["value"], color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    if outcomes is not None and len(outcomes):
        lambdas = np.union1d(lambdas, outcomes["lambda"].to_numpy(dtype=np.float64))
    set_lambda_ticks(accuracy, lambdas)
    accuracy.set_xlabel("λ, factor on the rejected reward (1: DPO)")


def _draw_predicted(
    axes: Axes, lambdas: Values, intervals: list[Mapping[str, float]], key: str, style: tuple[str, str, Any, str]
) -> None:
    _, color, dash, marker = style
    low, high = ([interval[end] for interval in intervals] for end in ("ci_low", "ci_high"))
    axes.fill_between(lambdas, low, high, color=color, alpha=0.18, linewidth=0, zorder=2)
    axes.plot(
        lambdas, [interval[key] for interval in intervals], color=color, linestyle=dash, linewidth=1.5, marker=marker,
        markersize=3, zorder=3,
    )  # fmt: skip


def _draw_measured(axes: Axes, outcomes: pd.DataFrame, name: str, style: tuple[str, str, Any, str]) -> None:
    """Points with bars; chosen and rejected are drawn a little apart, so that neither hides the other."""
    _, color, _, marker = style
    lambdas, values = (outcomes[column].to_numpy(dtype=np.float64) for column in ("lambda", name))
    ends = outcomes[[f"{name}_low", f"{name}_high"]].to_numpy(dtype=np.float64).T
    apart = {"chosen_change": -_APART, "rejected_change": _APART}.get(name, 0.0)
    axes.errorbar(
        lambdas + apart, values, yerr=np.nan_to_num(np.abs(ends - values)), fmt=marker, color=color, markersize=6.5,
        markeredgecolor=INK, markeredgewidth=0.7, capsize=2.5, elinewidth=1.1, zorder=4,
    )  # fmt: skip


def _leave_room(axes: Axes) -> None:
    """Headroom for the names of the marked lambdas, room below for the legend."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.16 * (high - low), high + 0.08 * (high - low))


def _make_handles(is_measured: bool) -> list[Line2D]:
    styles = list(_CHANGES.values())
    handles = [
        Line2D([], [], color=color, linestyle=dash, marker=marker, markersize=3, label=f"{name}, predicted")
        for name, color, dash, marker in styles
    ]
    edge: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": INK, "markeredgewidth": 0.7}
    if is_measured:
        handles += [
            Line2D([], [], color=color, linestyle="", marker=marker, label=f"{name}, measured", **edge)
            for name, color, _, marker in styles
        ]
    return handles


def _describe(outcomes: pd.DataFrame | None) -> str:
    text = (
        "Lines show the effect of one small step on pairs that were not used for the step. Horizontal dashes: "
        "DPO's predicted "
        "accuracy. Shaded areas and bars: 95 % bootstrap intervals over pairs."
    )
    if outcomes is None:
        return text
    if not len(outcomes):
        return (
            f"{text} No outcomes are shown. They need runs of this model with fixed λ, among them a DPO run whose mean "
            "margin is above 0."
        )
    about = sorted({f"{row['data']} [{row['split']}] (n = {row['n']:,})" for _, row in outcomes.iterrows()})
    return (
        f"{text} Large points: {count(len(outcomes), 'run')} at the end of training on {', '.join(about)}, per nat of "
        "margin that DPO gained there."
    )
