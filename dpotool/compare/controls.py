"""What costs nothing, beside every run: DPO scaled back and DPO stopped early, at the run's own chosen likelihood.

A control is a curve of scored models: start + t (DPO - start) for several t, or DPO's checkpoints; at one end the
start, at the other the finished DPO run. Between two neighbours on it everything is on the chord: what one gets who
takes one of the two models at random, so that a mean, unlike a single pair's score, is reached and nothing invented.

A run is compared with the mixture c of two neighbours that has the run's own mean chosen likelihood x. The mixture was
chosen by these same pairs, which the interval must know: with S the chord's slope, the pair values

    d = (y_run - y_c) - S (x_run - x_c)

have the difference as their mean, and the spread that the delta method gives it (tests/compare/test_controls.py draws
the mixture anew in every resample, and finds the same interval). Where no model of the control is as likely to give the
chosen answers, x and y change places: the chosen likelihood is compared at the same margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpotool.compare.comparison import find_scores
from dpotool.compare.differences import Comparison, is_shown
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.seeds import find_repetitions
from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder, is_checkpoint_name
from dpotool.stats.paired import adjust_holm, compare_means
from dpotool.stats.wording import format_interval

SCALED, STOPPED = "scaled back", "stopped early"
FOLDER = "controls"
"""In a DPO run's folder: blends of its start and itself."""
CHOSEN, MARGIN, ACCURACY = "chosen", "margin", "accuracy"
UNITS = {CHOSEN: (1, "+z.2f", "nats"), MARGIN: (1, "+z.2f", "nats"), ACCURACY: (100, "+z.1f", "points")}
"""Metric -> scale, format and unit; the margin is that of log-ratios, not times beta."""
NAMES = {CHOSEN: "chosen likelihood", MARGIN: "margin", ACCURACY: "accuracy"}
_VERBS = {SCALED: "scaling back", STOPPED: "stopping early"}
_SHORT = {SCALED: "scaled to", STOPPED: "stopped at"}
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ControlPoint:
    """A model on a control's curve."""

    share: float
    """How far it is from the start: the scale t, or the share of DPO's steps; 1 is the finished run."""
    name: str
    """"scaled back to 0.5", "stopped at step 31"."""
    run: ScoredRun


@dataclass(frozen=True)
class Curve:
    """One control of one DPO run."""

    kind: str
    """SCALED or STOPPED."""
    full: ScoredRun
    """The finished DPO run."""
    points: tuple[ControlPoint, ...]
    """Between the start and it, from the start on."""

    @cached_property
    def pair_ids(self) -> pd.Index:
        """Pairs that all of its models were scored on."""
        shared = self.full.scored.index
        for point in self.points:
            shared = shared.intersection(point.run.scored.index)
        return shared

    def read(self, shared: pd.Index) -> tuple[list[float], list[dict[str, Values]]]:
        """Returns share and pair values of the start, every point and the finished run.

        The start's changes and margins are 0. Its ranking is that of the point next to it: however small the step away
        from the start, it has a sign.
        """
        runs = [*(point.run for point in self.points), self.full]
        columns = [read_columns(run.restrict(shared)) for run in runs]
        nothing = np.zeros(len(shared))
        start = {CHOSEN: nothing, MARGIN: nothing, ACCURACY: columns[0][ACCURACY]}
        return [0.0, *(point.share for point in self.points), 1.0], [start, *columns]


@dataclass(frozen=True, slots=True)
class Check:
    """A run beside one control."""

    label: str
    kind: str
    """SCALED or STOPPED."""
    at: str
    """What both have the same of: CHOSEN, or MARGIN where no model of the control is as likely to give them."""
    share: float
    """Of the mixture it is compared with: t, or the share of the steps."""
    differences: dict[str, dict[str, Any]]
    """Metric -> `difference` (run minus control, an interval), `p_value`, `p_adjusted` (Holm over the runs)."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        return {
            "label": self.label, "control": self.kind, "at_same": self.at, "share": self.share,
            "differences": self.differences,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls of a comparison: their curves, and every other run beside those of its own seed."""

    curves: tuple[Curve, ...] = ()
    """Of the baseline."""
    checks: tuple[Check, ...] = ()

    def say(self, label: str) -> str | None:
        """Returns what one run does that its controls do not, in a sentence; None where there are none."""
        found = [check for check in self.checks if check.label == label]
        return _say(found) or None

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        points = [
            {"control": curve.kind, "share": point.share, "path": str(point.run.folder.path), **_mean(point.run)}
            for curve in self.curves
            for point in curve.points
        ]
        return {"points": points, "checks": [check.to_dict() for check in self.checks]}


def _mean(run: ScoredRun) -> dict[str, float]:
    return {name: float(values.mean()) for name, values in read_columns(run).items()}


def read_columns(run: ScoredRun) -> dict[str, Values]:
    """Returns change of the chosen log-likelihood and margin of log-ratios in nats, and whether it is above 0."""
    chosen, rejected = (run.columns[f"{side}_displacement"] for side in ("chosen", "rejected"))
    return {CHOSEN: chosen, MARGIN: chosen - rejected, ACCURACY: (chosen > rejected).astype(np.float64)}


def find_curves(full: ScoredRun) -> tuple[Curve, ...]:
    """Returns the controls of a DPO run that lie in its folder, scored on the same pairs."""
    if full.path is None or not full.is_referenced:
        return ()
    scaled, stopped = [], []
    for folder in sorted((full.folder.path / FOLDER).glob("*/run.yaml")):
        point = _read_scaled(RunFolder(folder.parent), full)
        scaled += [point] if point is not None else []
    n_steps = _count_steps(full.folder)
    for path in full.folder.path.glob("checkpoint-*"):
        if is_checkpoint_name(path.name) and n_steps:
            step = int(path.name.partition("-")[2])
            run = _open(RunFolder(path), full) if step < n_steps else None
            stopped += [ControlPoint(step / n_steps, f"stopped at step {step}", run)] if run is not None else []
    found = ((SCALED, scaled), (STOPPED, stopped))
    return tuple(Curve(kind, full, tuple(sorted(each, key=lambda point: point.share))) for kind, each in found if each)


def _read_scaled(folder: RunFolder, full: ScoredRun) -> ControlPoint | None:
    """Returns a blend of the run's start and itself; None for any other."""
    blend = folder.read_manifest().get("blend") or {}
    ends = [_name(blend.get(end)) for end in ("first", "second")]
    start = _name(full.config.get("model"))
    if ends.count(start) != 1:
        return None
    weight = float(blend["weight"])
    scale = weight if ends[0] == start else 1 - weight
    run = _open(folder, full) if 0 < scale < 1 else None
    return None if run is None else ControlPoint(scale, f"scaled back to {scale:.3g}", run)


def _name(model: Any) -> str:
    """A model's place where it has one, so that a sweep may be moved but for its start; else its name."""
    return str(Path(str(model)).resolve()) if Path(str(model)).exists() else str(model)


def _open(folder: RunFolder, full: ScoredRun) -> ScoredRun | None:
    """Returns a control's scores of the pairs that the run was scored on; None where it has none."""
    try:
        path, _ = find_scores(folder, data=full.data, split=full.split)
    except DpotoolError:
        return None
    run = ScoredRun.open(path)
    shared = run.scored.index.intersection(full.scored.index)
    return run if run.is_referenced and len(shared) == full.n else None


def _count_steps(folder: RunFolder) -> int | None:
    """The number of steps of a finished run, by its log."""
    rows = folder.read_metrics() if folder.metrics_path.exists() else []
    return max((int(row["step"]) for row in rows if row.get("step")), default=None)


def check_controls(comparison: Comparison, *, seed: int = 0) -> Controls:
    """Compares every run but the baseline's own repetitions with the controls of the DPO run of its seed."""
    runs = {run.label: run for run in comparison.scored}
    own = find_repetitions(comparison, {comparison.baseline})
    by_seed = {runs[label].manifest.get("seed"): find_curves(runs[label]) for label in sorted(own)}
    curves = find_curves(runs[comparison.baseline])
    checks = []
    for label, run in runs.items():
        if label not in own and run.is_referenced:
            theirs = by_seed.get(run.manifest.get("seed")) or curves
            checks += [check for curve in theirs if (check := check_run(run, curve, seed=seed)) is not None]
    _adjust(checks)
    return Controls(curves, tuple(checks))


def _adjust(checks: Sequence[Check]) -> None:
    for kind in _VERBS:
        for name in UNITS:
            family = [each.differences[name] for each in checks if each.kind == kind and name in each.differences]
            for member, p in zip(family, adjust_holm([each["p_value"] for each in family]), strict=True):
                member["p_adjusted"] = None if np.isnan(p) else p


def check_run(run: ScoredRun, curve: Curve, *, seed: int = 0) -> Check | None:
    """Compares a run with a control at the same chosen likelihood, else at the same margin; None without either."""
    shared = run.scored.index.intersection(curve.pair_ids)
    if not len(shared):
        return None
    restricted = run.restrict(shared)
    ours, (shares, theirs) = read_columns(restricted), curve.read(shared)
    for at, others in ((CHOSEN, (MARGIN, ACCURACY)), (MARGIN, (CHOSEN, ACCURACY))):
        place = _find_place(ours, theirs, at, best_in=others[0])
        if place is None:
            continue
        first, weight = place
        differences = {}
        for name in others:
            d = compare_on_chord(ours, theirs[first], theirs[first + 1], weight, at, name)
            found = compare_means(d, np.zeros(len(d)), clusters=restricted.clusters, seed=seed)
            differences[name] = {"difference": found.difference.to_dict("mean"), "p_value": found.p_value}
        share = (1 - weight) * shares[first] + weight * shares[first + 1]
        return Check(run.label, curve.kind, at, share, differences)
    return None


def _find_place(
    ours: Mapping[str, Values], theirs: Sequence[Mapping[str, Values]], at: str, best_in: str
) -> tuple[int, float] | None:
    """Returns the chord that holds the run's mean of `at`, and where on it; of several the best one."""
    wanted = ours[at].mean()
    means = [each[at].mean() for each in theirs]
    found = []
    for first, (low, high) in enumerate(pairwise(means)):
        if low != high and min(low, high) <= wanted <= max(low, high):
            weight = float((wanted - low) / (high - low))
            value = (1 - weight) * theirs[first][best_in].mean() + weight * theirs[first + 1][best_in].mean()
            found.append((value, first, weight))
    return max(found)[1:] if found else None


def compare_on_chord(
    ours: Mapping[str, Values], low: Mapping[str, Values], high: Mapping[str, Values], weight: float, at: str, name: str
) -> Values:
    """Returns the pair values d of the module's text, y being `name` and x being `at`."""
    slope = (high[name].mean() - low[name].mean()) / (high[at].mean() - low[at].mean())
    x, y = (ours[each] - ((1 - weight) * low[each] + weight * high[each]) for each in (at, name))
    return np.asarray(y - slope * x, dtype=np.float64)


def _say(checks: Sequence[Check]) -> str:
    """Returns "At the same chosen likelihood DPO-Shift λ=0.9 beats scaling back in margin by 0.31 nats [..]; ..."."""
    sentences, before = [], None
    for check in checks:
        who = "it" if check.at == before else f"at the same {NAMES[check.at]} {check.label}"
        sentences.append(f"{who} {_weigh(check)}.")
        before = check.at
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}" for sentence in sentences)


def _weigh(check: Check) -> str:
    """Returns "beats scaling back in margin by 0.31 nats [..]; not in accuracy (..)", what is shown first."""
    won, lost, level = (
        {name: each for name, each in check.differences.items() if _sign(each) == sign} for sign in (1, -1, 0)
    )
    verb = _VERBS[check.kind]
    counted = [" and in ".join(_count(name, each) for name, each in group.items()) for group in (won, lost)]
    same = " or ".join(f"{NAMES[name]} ({_format(name, each['difference'])})" for name, each in level.items())
    if won:
        behind = f", but falls behind it in {counted[1]}" if lost else ""
        return f"beats {verb} in {counted[0]}{behind}" + (f"; not in {same}" if same else "")
    start = f"falls behind {verb} in {counted[1]}" if lost else f"does not beat {verb}"
    return start + (f"; no difference is shown in {same}" if same else "")


def _sign(difference: Mapping[str, Any]) -> int:
    return int(np.sign(difference["difference"]["mean"])) if is_shown(difference) else 0


def _count(name: str, difference: Mapping[str, Any]) -> str:
    scale, _, unit = UNITS[name]
    interval = difference["difference"]
    low, high = sorted((abs(interval["ci_low"]), abs(interval["ci_high"])))
    digits = 1 if unit == "points" else 2
    size = f"{scale * abs(interval['mean']):.{digits}f} {unit} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return f"{NAMES[name]} by {size}"


def _format(name: str, interval: Mapping[str, float]) -> str:
    scale, form, unit = UNITS[name]
    return format_interval(interval, form, scale, f" {unit}")


CONTROLS_TITLE = (
    "Against what costs nothing: DPO scaled back, and DPO stopped early. Run minus control at the same chosen "
    "likelihood (or, where it says so, margin); margins of log-ratios in nats, accuracy in points, 95 % intervals"
)


def tabulate_controls(controls: Controls) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows, a row for each run and control."""
    rows = []
    for check in controls.checks:
        cells = [_fill(check, name, "the same") for name in (CHOSEN, MARGIN, ACCURACY)]
        share = f"{check.share:.2f}" if check.kind == SCALED else f"{100 * check.share:.0f} %"
        rows.append([check.label, f"{_SHORT[check.kind]} {share}", *cells])
    return ["run", "DPO", "chosen", "margin", "accuracy"], rows


def _fill(check: Check, name: str, missing: str) -> str:
    scale, form, _ = UNITS[name]
    found = check.differences.get(name)
    return missing if found is None else format_interval(found["difference"], form, scale)


SCALED_TITLE = "Against DPO scaled back, start + t (DPO - start), at equal chosen likelihood"
SCALED_NOTE = (
    "Margin of log-ratios in nats, accuracy in points, 95 % intervals; a row with “chosen” is compared at equal margin."
)


def summarize_controls(controls: Controls) -> tuple[list[str], list[list[str]]]:
    """Returns a narrow table, a row for each run beside DPO scaled back."""
    rows = []
    for check in controls.checks:
        if check.kind == SCALED:
            gain = _fill(check, MARGIN, "") or f"chosen {_fill(check, CHOSEN, '')}"
            rows.append([check.label, f"{check.share:.2f}", gain, _fill(check, ACCURACY, "-")])
    return ["run", "t", "margin", "accuracy"], rows
