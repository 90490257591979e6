"""Gain and cost of each run against the baseline, over the same pairs: chosen log-likelihood and accuracy or margin."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dpotool.compare.controls import SCALED, STOPPED, Controls, Curve
from dpotool.compare.differences import Comparison
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.plots.labels import label_points
from dpotool.plots.registry import Drawing
from dpotool.plots.scene import Scene
from dpotool.plots.theme import (
    COLORS,
    INK,
    MARKERS,
    MUTED,
    describe_ns,
    make_figure,
    put_legend_above,
    ring_recommended,
    set_note,
    set_title,
    styled,
    wrap,
)
from dpotool.stats.intervals import Interval, format_interval
from dpotool.stats.paired import read_difference
from dpotool.wording import count

_X, _CHANGE = "chosen_logps", "chosen_displacement"
AGAINST = {
    "reward_accuracy": ("reward accuracy", "points", 100.0),
    "reward_margins": ("reward margin", "nats", 1.0),
}
"""Metric on the y axis -> its name, unit and scale."""


@dataclass(frozen=True, slots=True)
class Point:
    """A run: its differences from the baseline, in the units of the axes."""

    label: str
    run: Mapping[Any, Any]
    """Its row in the runs table."""
    x: Interval
    y: Interval


def draw(scene: Scene) -> Drawing:
    """Draws the scored runs against the baseline; raises DpotoolError where there is no difference to draw."""
    return _draw(scene, "reward_accuracy")


def draw_margin(scene: Scene) -> Drawing:
    """Draws the gain in chosen log-likelihood against the reward margin."""
    return _draw(scene, "reward_margins")


def _draw(scene: Scene, against: str) -> Drawing:
    scene.need_runs()
    comparison, controls, found = scene.comparison, scene.findings.controls, scene.findings.recommendation
    told: dict[str, Any] = {"recommended": scene.recommended, "allowed_loss": found and found.rule.delta, **scene.title}
    figure = plot_tradeoff(comparison, against=against, controls=controls, **told)
    points = read_points(comparison, against)
    name, unit, _ = AGAINST[against]
    rows = [
        f"{each.label}: log π(chosen) {format_interval(each.x, '+z.2f')} nats, {name} "
        f"{format_interval(each.y, '+z.2f')} {unit}"
        for each in points
        if each.label != comparison.baseline
    ]
    front = [each.label for each, is_best in zip(points, is_on_front(*_centres(points)), strict=True) if is_best]
    text = f"Differences from {comparison.baseline} over the same pairs. {'; '.join(rows)}. "
    lines = [f"{line.name}: {line.describe()}." for line in read_lines(comparison, controls, against)]
    return Drawing(figure, " ".join([f"{text}On the Pareto front: {', '.join(front)}.", *lines]))


def read_points(comparison: Comparison, against: str) -> list[Point]:
    """Returns a point per run whose two differences are known, the baseline at the origin."""
    _, _, scale = AGAINST[against]
    found = {label: each.metrics[against] for label, each in comparison.differences.items()}
    return place_points(comparison, {label: read_difference(y) for label, y in found.items()}, scale)


def place_points(comparison: Comparison, y: Mapping[str, Interval | None], scale: float) -> list[Point]:
    """Returns the points of the runs whose y is given, and the baseline's; those without a likelihood have none."""
    points = []
    for run in comparison.runs.to_dict("records"):
        label = str(run["label"])
        if label == comparison.baseline:
            none = Interval(0.0, 0.0, 0.0)
            points.append(Point(label, run, none, none))
            continue
        x, found = comparison.differences[label].metrics[_X], y.get(label)
        if x is not None and found is not None:
            points.append(Point(label, run, x.difference, found.scale(scale)))
    return points


@dataclass(frozen=True, slots=True)
class Line:
    """A curve that is drawn through the map, in the units of the axes."""

    name: str
    x: list[float]
    y: list[float]
    style: Mapping[str, Any]

    def describe(self) -> str:
        """Returns its corners, as (likelihood, other)."""
        return ", ".join(f"({x:+.2f}, {y:+.2f})" for x, y in zip(self.x, self.y, strict=True))


Means = Mapping[str, float]
"""Column -> mean of a control's model less that of the finished run, over the pairs that all of them were scored on."""
Rise = Callable[[ScoredRun | None, Means], float | None]
"""y of a control's model (None: the start of the training), in the units of the axis, where it is known."""


def read_lines(comparison: Comparison, controls: Controls, against: str) -> list[Line]:
    """Returns the curves of the controls, of the lambdas that were trained, and of the blends, where there are any."""

    def rise(run: ScoredRun | None, means: Means) -> float | None:
        # at the start every margin is 0; accuracy has no value there
        return None if run is None and against != "reward_margins" else AGAINST[against][2] * means[against]

    return place_lines(comparison, controls, read_points(comparison, against), rise)


def place_lines(comparison: Comparison, controls: Controls, points: Sequence[Point], rise: Rise) -> list[Line]:
    """Returns the curves of the controls whose y is known, and those through the points of the runs."""
    lines = [line for curve in controls.curves if (line := _place_control(curve, rise)) is not None]
    manifests = {run.label: run.manifest for run in comparison.scored}
    groups: defaultdict[tuple[str, ...], dict[float, Point]] = defaultdict(dict)
    for each in points:
        blend = manifests[each.label].get("blend") or {}
        if blend.get("weight") is not None:  # blends of other ends lie on another line
            groups["blends", str(blend["first"]), str(blend["second"])][float(blend["weight"])] = each
        elif not math.isnan(each.run["lambda"]):
            groups["λ, trained",][float(each.run["lambda"])] = each
    for (name, *_), group in sorted(groups.items(), key=lambda item: item[0][0] == "blends"):
        ordered = [group[order] for order in sorted(group)]
        if len(ordered) > 1:
            x, y = ([getattr(each, axis).value for each in ordered] for axis in "xy")
            lines.append(Line(name, x, y, _RUN_STYLES[name]))
    return lines


def _place_control(curve: Curve, rise: Rise) -> Line | None:
    """Returns a control's curve up to the finished run, at the origin; None where no other place of it is known."""

    def average(run: ScoredRun) -> Means:
        columns = run.restrict(curve.pair_ids).columns
        return {name: float(columns[name].mean()) for name in (_CHANGE, *AGAINST)}

    full, known = average(curve.full), []
    for run in (None, *(point.run for point in curve.points)):
        means = dict.fromkeys(full, 0.0) if run is None else average(run)
        less = {name: mean - full[name] for name, mean in means.items()}
        if (y := rise(run, less)) is not None:
            known.append((less[_CHANGE], y))
    known.append((0.0, 0.0))  # the finished run itself
    xs, ys = map(list, zip(*known, strict=True))
    return Line(f"DPO {curve.kind}", xs, ys, _CONTROL_STYLES[curve.kind]) if len(known) > 1 else None


_CONTROL_STYLES: dict[str, Mapping[str, Any]] = {
    SCALED: {"color": COLORS[1], "linestyle": (0, (5, 2)), "marker": "."},
    STOPPED: {"color": COLORS[6], "linestyle": (0, (1, 1.5)), "marker": "x", "markersize": 5},
}
_RUN_STYLES: dict[str, Mapping[str, Any]] = {
    "λ, trained": {"color": COLORS[0], "linestyle": "-"},
    "blends": {"color": COLORS[5], "linestyle": (0, (5, 2, 1, 2))},
}


@styled
def plot_tradeoff(
    comparison: Comparison,
    *,
    model: str,
    data: str,
    against: str = "reward_accuracy",
    recommended: str | None = None,
    allowed_loss: float | None = None,
    controls: Controls | None = None,
) -> Figure:
    """Draws one point per run with paired 95 % intervals of both differences, the Pareto front, and curves.

    Args:
        comparison: of several runs with one of them (compare.differences).
        model, data: for the title.
        against: metric on the y axis, `reward_accuracy` or `reward_margins`.
        recommended: label of the run to mark.
        allowed_loss: points of accuracy whose loss must be ruled out before a run is recommended.
        controls: the baseline scaled back and stopped early.

    Raises DpotoolError for another `against`, or when no run differs from the baseline by known numbers.
    """
    if against not in AGAINST:
        raise DpotoolError(f"cannot draw against {against!r}", remedy=suggest_nearest(against, AGAINST))
    points = read_points(comparison, against)
    need_differences(comparison, len(points) > 1, against)
    name, unit, _ = AGAINST[against]
    base = comparison.baseline
    allowed = allowed_loss if against == "reward_accuracy" else None
    lines = read_lines(comparison, controls or Controls(), against)
    figure = draw_points(points, base, f"{name}, difference from {base} ({unit})", recommended, allowed, lines)
    set_title(figure, "Gain and cost against the baseline", model, data, describe_ns(comparison.scored))
    set_note(figure, _describe(comparison, len(points), int(is_on_front(*_centres(points)).sum())))
    return figure


def draw_points(
    points: list[Point],
    baseline: str,
    y_label: str,
    recommended: str | None = None,
    allowed_loss: float | None = None,
    lines: Sequence[Line] = (),
) -> Figure:
    """Returns the figure without title and note: a point per run with its intervals, the Pareto front, and lines."""
    x, y = _centres(points)
    figure = make_figure(7.2, 5.0)
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    on_front = is_on_front(x, y)
    _draw_front(axes, x[on_front], y[on_front])
    for line in lines:
        is_new = line.name not in axes.get_legend_handles_labels()[1]
        axes.plot(line.x, line.y, linewidth=1.1, zorder=2, label=line.name if is_new else None, **line.style)
    draw_runs(axes, points, recommended)
    put_legend_above(axes, 4)
    axes.grid()
    axes.set_axisbelow(True)
    axes.margins(0.08)
    if allowed_loss is not None:
        _draw_allowed(axes, allowed_loss)
    axes.set_xlabel(f"mean log π(chosen), difference from {baseline} (nats)\nright: chosen answers more likely")
    axes.set_ylabel(y_label)
    # the legend says that dots are DPO-Shift
    labels = [wrap(each.label.removeprefix("DPO-Shift "), 26, 2) for each in points]
    label_points(axes, x, y, labels, avoid=_front_corners(x[on_front], y[on_front]))
    return figure


def need_differences(comparison: Comparison, is_known: bool, metric: str) -> None:
    """Raises DpotoolError, with the remedy, where there is only one run, or no difference of a metric is known."""
    if len(comparison.runs) < 2:
        remedy = "Name at least two scored runs, or a sweep"
        raise DpotoolError("one run alone has no difference to draw", where=comparison.baseline, remedy=remedy)
    if not is_known:
        what = metric.replace("_", " ")
        raise DpotoolError(f"no run's {what} can be compared", remedy="Score the runs with a reference first")


def measure_bars(interval: Interval) -> NDArray[np.float64]:
    """Returns how far an interval reaches below and above its mean, (2, 1); 0 where its ends are not known."""
    return np.nan_to_num([[interval.value - interval.ci_low], [interval.ci_high - interval.value]])


def is_on_front(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no other point is at least as high in both x and y and higher in one."""
    is_higher = (x[None] >= x[:, None]) & (y[None] >= y[:, None]) & ((x[None] > x[:, None]) | (y[None] > y[:, None]))
    return np.logical_not(is_higher.any(axis=1))


def _centres(points: list[Point]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([each.x.value for each in points]), np.array([each.y.value for each in points])


def _draw_front(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    if len(x) > 1:
        axes.plot(
            *_front_corners(x, y).T, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=2, label="Pareto front"
        )


def _front_corners(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of the stairs under which every point is beaten by one on the front, (2 n - 1, 2), from the left.

    Between two runs on the front the best known is the right one's y, not the left one's: that one's x is too low.
    """
    order = np.argsort(x)
    x, y = np.repeat(x[order], 2)[:-1], np.repeat(y[order], 2)[1:]
    return np.column_stack([x, y])


def _draw_allowed(axes: Axes, points: float) -> None:
    """A band down to the loss that is allowed: of a recommended run the whole interval lies above its end."""
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -points - 0.08 * (high - low)), high)
    axes.axhspan(-points, 0, color=COLORS[2], alpha=0.1, linewidth=0, zorder=0)
    axes.annotate(
        f"a loss of up to {points:g} points is allowed", (1, -points), xycoords=("axes fraction", "data"),
        xytext=(-3, 3), textcoords="offset points", ha="right", va="bottom", fontsize=7.5, color=MUTED,
    )  # fmt: skip


def draw_runs(axes: Axes, points: list[Point], recommended: str | None) -> None:
    """Draws DPO as a star, constant lambdas as dots, every other run with another marker."""
    position, named = 0, set()
    for each in points:
        if each.run["loss"] == "dpo" or each.run["lambda"] == 1:
            marker, color, name = "*", COLORS[1], "DPO"
        elif not math.isnan(each.run["lambda"]):
            marker, color, name = "o", COLORS[0], "DPO-Shift, constant λ"
        elif each.run["loss"] == "blend":
            marker, color, name = "o", COLORS[5], "blend"
        else:
            marker, color, name = MARKERS[1 + position % (len(MARKERS) - 1)], COLORS[2 + position % 5], ""
            position += 1
        axes.errorbar(
            each.x.value, each.y.value, xerr=measure_bars(each.x), yerr=measure_bars(each.y), fmt="none",
            ecolor=color, elinewidth=1.1, capsize=2, zorder=3,
        )  # fmt: skip
        axes.plot(
            each.x.value, each.y.value, marker, color=color, markersize=12 if marker == "*" else 7,
            markeredgecolor=INK, markeredgewidth=0.6, label=name if name and name not in named else None, zorder=4,
        )  # fmt: skip
        named.add(name)
        if each.label == recommended:
            ring_recommended(axes, each.x.value, each.y.value)


def _describe(comparison: Comparison, n_points: int, n_on_front: int) -> str:
    text = (
        f"{count(n_points, 'run')}, {n_on_front} of them on the Pareto front by point estimate. Bars: 95 % bootstrap "
        f"intervals of the difference from {comparison.baseline} over the same pairs."
    )
    n_missing = len(comparison.runs) - n_points
    return text + (f" {count(n_missing, 'run')} without both numbers not shown." if n_missing else "")
