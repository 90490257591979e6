"""The report's figures as PNG, each with a caption and an alternative text that says in words what it shows."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from dpotool.errors import DpotoolError
from dpotool.plots.accuracy import plot_accuracy
from dpotool.plots.displacement import plot_displacement
from dpotool.plots.forecast import plot_forecast
from dpotool.plots.gallery import KINDS, find_outcomes
from dpotool.plots.margin import plot_margin
from dpotool.plots.quadrants import QUADRANTS, count_quadrants, plot_quadrants
from dpotool.plots.scene import Scene
from dpotool.plots.tradeoff import is_on_front, plot_tradeoff
from dpotool.report.blocks import Paragraph, Picture
from dpotool.report.series import describe_source, read_ends
from dpotool.report.size import DPI
from dpotool.report.theory_words import describe_forecast, describe_signs


def draw_displacement(scene: Scene, dpi: int = DPI) -> list[Picture | Paragraph]:
    """The paper's main figure and the margins behind it."""
    tables = scene.read_scores()
    means = "; ".join(
        f"{row['label']}: mean log-likelihood of chosen {row['chosen_logps']:.2f}, of rejected "
        f"{row['rejected_logps']:.2f}" + _say(row["reward_margins"], ", mean margin {:.3f}")
        for row in scene.runs.to_dict("records")
    )
    margins = "; ".join(
        f"{row['label']}: {100 * row['reward_accuracy']:.1f} % of margins above zero"
        for row in scene.runs.to_dict("records")
        if not math.isnan(row["reward_accuracy"])
    )
    return [
        *_try(
            dpi, "displacement", lambda: plot_displacement(tables, **scene.title),
            f"Histograms of chosen and rejected log-likelihoods and of the reward margin, a row per model. {means}.",
            "Log-likelihoods of chosen and rejected completions and reward margins, a row per model; the dashed "
            "outline is the reference.",
        ),
        *_try(
            dpi, "margin", lambda: plot_margin(tables, **scene.title),
            f"Histograms of reward margins, a ridge per model. {margins}.",
            "Reward margins; what lies right of zero is reward accuracy.",
        ),
    ]  # fmt: skip


def draw_accuracy(scene: Scene, dpi: int = DPI) -> list[Picture | Paragraph]:
    """Reward accuracy against lambda."""
    known = scene.runs[scene.runs["reward_accuracy"].notna()]
    values = "; ".join(
        f"{row['label']} {100 * row['reward_accuracy']:.1f} % "
        f"(95 % interval {100 * row['reward_accuracy_low']:.1f} to {100 * row['reward_accuracy_high']:.1f})"
        for row in known.to_dict("records")
    )
    return _try(
        dpi, "accuracy", lambda: plot_accuracy(scene.runs, **scene.title),
        f"Reward accuracy with intervals, runs ordered by lambda. {values}.",
        "Reward accuracy against λ; λ = 1 is DPO.",
    )  # fmt: skip


def draw_tradeoff(scene: Scene, dpi: int = DPI) -> list[Picture | Paragraph]:
    """The Pareto front."""
    known = scene.runs[scene.runs[["chosen_logps", "reward_accuracy"]].notna().all(axis=1)]
    front: Sequence[str] = []
    if len(known):
        on_front = is_on_front(known["chosen_logps"].to_numpy(float), known["reward_accuracy"].to_numpy(float))
        front = [str(label) for label in known["label"][on_front]]
    return _try(
        dpi, "tradeoff", lambda: plot_tradeoff(scene.runs, **scene.title),
        f"Mean log-likelihood of chosen against reward accuracy, a point per run. On the Pareto front: "
        f"{', '.join(front) or 'none'}.",
        "The trade-off; no run is better in both than one on the dashed Pareto front.",
    )  # fmt: skip


def draw_quadrants(scene: Scene, dpi: int = DPI) -> list[Picture | Paragraph]:
    """Which way the pairs moved."""
    tables = scene.read_scores()

    def shares(label: str, table: pd.DataFrame) -> str:
        counts = count_quadrants(table)
        n_pairs = max(1, sum(counts.values()))
        return f"{label}: " + ", ".join(f"{name} {100 * counts[name] / n_pairs:.1f} %" for name in QUADRANTS)

    try:
        words = "; ".join(shares(label, table) for label, table in tables.items())
    except (TypeError, ValueError):
        words = ""  # no reference: the figure says so itself
    return _try(
        dpi, "quadrants", lambda: plot_quadrants(tables, **scene.title),
        f"Change of the chosen against change of the rejected log-likelihood, a point per pair. {words}.",
        "Change of chosen against change of rejected log-likelihood, a panel per model and a point per pair.",
    )  # fmt: skip


def draw_trajectory(scene: Scene, dpi: int = DPI) -> list[Picture | Paragraph]:
    """Log-likelihoods while training."""
    words = []
    for label, rows in scene.read_metrics().items():
        sides = ((side, read_ends(rows, f"logps/{side}")) for side in ("chosen", "rejected"))
        moves = [
            f"{side} from {ends.first:.2f} at step {ends.steps[0]} to {ends.last:.2f} at step {ends.steps[1]}"
            for side, ends in sides
            if ends
        ]
        words.append(f"{label}, {describe_source(rows)}: {', '.join(moves) or 'none logged'}")
    return _try(
        dpi, "trajectory", lambda: KINDS["trajectory"](scene)["trajectory"],
        f"Mean log-likelihoods of chosen and rejected over optimiser steps, a panel per run. {'; '.join(words)}.",
        "Mean log-likelihoods of chosen and rejected while training.",
    )  # fmt: skip


_NO_THEORY = (
    "these folders hold no theory table taken, before training, of the model that the runs started from. "
    "`dpotool theory-gap` makes one."
)


def draw_theory(scene: Scene, dpi: int = DPI) -> list[Picture | Paragraph]:
    """u against v of Theorem 2.1, and the forecast with what came of it, where the scene has a theory table for it."""
    found = scene.find_theory()
    if scene.theory is None or found is None:
        return [Paragraph(f"Not drawn: {_NO_THEORY}", tone="note")]
    return [
        *_try(
            dpi, "theory", lambda: KINDS["theory"](scene)["theory"],
            "Scatter of u against v of Theorem 2.1, a point per pair, its entanglement case as its shape. "
            f"{describe_signs(found.frame)}",
            "u and v of Theorem 2.1 per pair, before training.",
        ),
        *_draw_forecast(scene, dpi),
    ]  # fmt: skip


def _draw_forecast(scene: Scene, dpi: int) -> list[Picture | Paragraph]:
    found = scene.find_theory(lambda summary: summary.get("advice"))
    if found is None:
        return []
    advice, outcomes = found.summary["advice"], find_outcomes(scene, found)
    return _try(
        dpi, "forecast", lambda: plot_forecast(advice, **found.title, outcomes=outcomes),
        "Change of chosen and rejected log-likelihoods, in nats per nat of margin that DPO gains, and reward accuracy, "
        f"by λ. {describe_forecast(advice, outcomes)}",
        "The forecast made before training, and what training measured.",
    )  # fmt: skip


def _try(dpi: int, name: str, draw: Callable[[], Figure], alt: str, caption: str) -> list[Picture | Paragraph]:
    """The picture, shown at the same size whatever its dots per inch, or a sentence that says why there is none."""
    try:
        figure = draw()
    except DpotoolError as error:
        return [Paragraph(f"Not drawn: {error}.", tone="note")]
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    return [Picture(name, buffer.getvalue(), " ".join(alt.split()), caption, width, height)]


def _say(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)
