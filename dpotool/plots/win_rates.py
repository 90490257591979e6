"""Wins, ties and losses of each run's answers against the baseline's, and win rate against chosen log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.win_rates import ALIKE, JudgedRun, describe_judged, find_alike, read_judged
from dpotool.errors import DpotoolError
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    COLORS,
    FAINT,
    INK,
    MUTED,
    make_figure,
    put_legend_above,
    set_note,
    set_title,
    styled,
    wrap,
)
from dpotool.plots.tradeoff import Line, Point, Rise, draw_points, place_lines, place_points
from dpotool.stats.intervals import Interval, format_interval
from dpotool.wording import capitalize, count

_PARTS = (("wins", COLORS[0], ""), ("ties", FAINT, ""), ("losses", COLORS[1], "/////"))


def draw(scene: Scene) -> Drawing:
    """Draws the judged runs; raises DpotoolError where there is none."""
    judged = need_judged(scene)
    figure = plot_win_rates(judged)
    shares = [_tell_shares(run) for run in judged]
    return Drawing(figure, f"{describe_judged(judged, None)[0]} {' '.join(shares)}")


@styled
def plot_tradeoff(points: list[Point], judged: Sequence[JudgedRun], lines: Sequence[Line] = ()) -> Figure:
    """Draws a point per run with intervals of both: difference in log pi(chosen), and win rate less one half."""
    first = judged[0].summary
    y_label = f"win rate over {first['baseline']} less one half (points)"
    figure = draw_points(points, first["baseline"], y_label, lines=lines)
    set_title(figure, "Chosen likelihood and win rate", f"judge: {first['judge']}", _tell_n(judged))
    set_note(figure, _describe(judged))
    return figure


def draw_tradeoff(scene: Scene) -> Drawing:
    """Draws win rate against the difference in chosen log-likelihood; raises DpotoolError where either is not known."""
    judged, comparison = need_judged(scene), scene.comparison
    above_half = {
        label: Interval.read({end: number - 0.5 for end, number in rate.items()})
        for label, rate in scene.findings.win_rates.items()
    }
    points = place_points(comparison, above_half, 100)
    if len(points) < 2 or judged[0].summary["baseline"] != comparison.baseline:
        raise DpotoolError(
            "no judged run can be set beside the scored ones",
            expected=f"judgments against {comparison.baseline}",
            got=str(judged[0].summary["baseline"]),
            remedy=f"Judge the answers with --baseline '{comparison.baseline}'",
        )
    rows = [f"{each.label}: {format_interval(each.x, '+z.2f')} nats, {each.y.value + 50:.1f} %" for each in points]
    lines = place_lines(comparison, scene.findings.controls, points, _read_rates(scene))
    alt = f"Difference in chosen log-likelihood, and win rate over {comparison.baseline}. {'; '.join(rows)}."
    alts = [alt, *(f"{line.name}: {line.describe()}." for line in lines)]
    return Drawing(plot_tradeoff(points, judged, lines), " ".join(alts))


def _read_rates(scene: Scene) -> Rise:
    """Returns how far above one half a control's win rate is, in points, where it was judged as the runs were."""
    curves = scene.findings.controls.curves
    models = [run.folder for curve in curves for run in (curve.full, *(point.run for point in curve.points))]
    alike = find_alike([*scene.everything, *models], "judgment")
    first = need_judged(scene)[0].summary
    is_same = bool(alike) and all(alike[0][1].get(name) == first.get(name) for name in ALIKE)
    rates = {folder.path: found["win_rate"]["ties_half"]["value"] for folder, found in alike} if is_same else {}

    def rise(run: ScoredRun | None, _means: Mapping[str, float]) -> float | None:
        rate = None if run is None else rates.get(run.folder.path)
        return None if rate is None else 100 * (rate - 0.5)

    return rise


def need_judged(scene: Scene) -> list[JudgedRun]:
    """Returns the judged runs of a scene. Raises DpotoolError, with the remedy, where there is none."""
    judged = read_judged(scene.everything)
    if not judged:
        where = str(scene.everything[0].path)
        raise DpotoolError(
            "no judgments here", where=where, remedy=f"Run `dpotool generate {where}`, then `dpotool judge {where}`"
        )
    return judged


@styled
def plot_win_rates(judged: Sequence[JudgedRun]) -> Figure:
    """Draws a bar per run, its parts the shares of wins, ties and losses, with counts; the win rate beside it."""
    figure = make_figure(7.2, 1.9 + 0.42 * len(judged))
    axes = figure.add_subplot()
    places = np.arange(len(judged))[::-1]
    left = np.zeros(len(judged))
    for name, color, hatch in _PARTS:
        shares = np.array([100 * run.summary[name] / max(1, run.summary["n"]) for run in judged])
        axes.barh(
            places,
            shares,
            left=left,
            height=0.62,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.6,
            label=name,
        )
        for place, share, start, run in zip(places, shares, left, judged, strict=True):
            if share >= 5:
                axes.text(
                    start + share / 2, place, str(run.summary[name]), ha="center", va="center", fontsize=8,
                    color=INK if name == "ties" else "white",
                    bbox={"boxstyle": "square,pad=0.15", "facecolor": color, "edgecolor": "none"},
                )  # fmt: skip
        left += shares
    for place, run in zip(places, judged, strict=True):
        axes.text(101, place, format_interval(run.rate, ".1f", 100), va="center", fontsize=8, color=INK)
    axes.annotate(
        "win rate, %", (106, 0), xycoords=("data", "axes fraction"), xytext=(0, -6), textcoords="offset points",
        va="top", fontsize=8, color=MUTED,
    )  # fmt: skip
    axes.axvline(50, color=INK, linewidth=0.8, linestyle=(0, (4, 2)), zorder=3)
    axes.set_yticks(places, [wrap(run.label, 22, 2) for run in judged])
    axes.set_xlim(0, 126)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("share of questions, % (dashed: half)")
    put_legend_above(axes, 3)
    first = judged[0].summary
    set_title(figure, f"Answers against those of {first['baseline']}", f"judge: {first['judge']}", _tell_n(judged))
    set_note(figure, _describe(judged))
    return figure


def _tell_n(judged: Sequence[JudgedRun]) -> str:
    counts = sorted({run.summary["n"] for run in judged})
    return f"n = {' to '.join(f'{n:,}' for n in dict.fromkeys((counts[0], counts[-1])))} questions"


def _tell_shares(run: JudgedRun) -> str:
    found = run.summary
    return f"{run.label}: {found['wins']} wins, {found['ties']} ties, {found['losses']} losses."


def _describe(judged: Sequence[JudgedRun]) -> str:
    first = judged[0].summary
    missing = sum(run.summary["without_outcome"] for run in judged)
    proxy = "A proxy, not a judgment of quality. " if first.get("is_proxy") else ""
    left = (
        f" {count(missing, 'question without a verdict is', 'questions without a verdict are')} in no class."
        if missing
        else ""
    )
    return f"{proxy}{capitalize(first['caveat'])}. Ties count half; 95 % intervals over questions.{left}"
