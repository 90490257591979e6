"""The controls, DPO scaled back and DPO stopped early: their curves, and sentences about them.

A control is a curve of scored models: start + t (DPO - start) for several t, or DPO's checkpoints; at one end the
start, at the other the finished DPO run. `compare.control_checks` compares runs with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpotool.compare.runs_table import find_scores
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError, find_place
from dpotool.runs.folder import RunFolder, is_checkpoint_name
from dpotool.stats.intervals import Interval, format_interval
from dpotool.stats.paired import Tested
from dpotool.wording import count

SCALED, STOPPED = "scaled back", "stopped early"
FOLDER = "controls"
"""In a DPO run's folder: blends of its start and itself."""
CHOSEN, MARGIN, ACCURACY, WINS = "chosen", "margin", "accuracy", "win rate"
UNITS = {
    CHOSEN: (1, "+z.2f", "nats"), MARGIN: (1, "+z.2f", "nats"), ACCURACY: (100, "+z.1f", "points"),
    WINS: (100, "+z.1f", "points"),
}  # fmt: skip
"""Metric -> scale, format and unit; the margin is that of log-ratios, not times beta; the win rate has ties as half."""
NAMES = {CHOSEN: "chosen likelihood", MARGIN: "margin", ACCURACY: "accuracy", WINS: "win rate"}
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
    differences: dict[str, Tested]
    """Metric -> run minus control; of a setting a `seeds.SeedDifference`. P-values adjusted by Holm over the runs."""
    seeds: tuple[int, ...] = ()
    """Of a setting, each of its runs beside the controls of the DPO run of its seed; empty for a single run."""

    @property
    def name(self) -> str:
        """What is compared, as a table names it."""
        return f"{self.label}, {count(len(self.seeds), 'seed')}" if self.seeds else self.label

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        about = {"label": self.label, "control": self.kind, "at_same": self.at, "share": self.share}
        differences = {name: each.to_dict() for name, each in self.differences.items()}
        return {**about, "differences": differences, "seeds": list(self.seeds)}


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls of a comparison: their curves, and the check of every other run against those of its seed."""

    curves: tuple[Curve, ...] = ()
    """Of the baseline."""
    checks: tuple[Check, ...] = ()

    def say(self, label: str, *, pooled: bool = False) -> str | None:
        """Returns what one run does that its controls do not, in a sentence; None where there are none.

        Args:
            pooled: the label is that of a setting with several seeds, which are taken together.
        """
        return _say([check for check in self.checks if check.label == label and bool(check.seeds) is pooled]) or None

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
    return str(find_place(str(model))) if Path(str(model)).exists() else str(model)


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


def _say(checks: Sequence[Check]) -> str:
    """Returns "At the same chosen likelihood DPO-Shift λ=0.9 beats scaling back in margin by 0.31 nats [..]; ..."."""
    sentences, before = [], None
    for check in checks:
        over = f" (over {count(len(check.seeds), 'seed')})" if check.seeds else ""
        who = "it" if check.at == before else f"at the same {NAMES[check.at]} {check.label}{over}"
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
    same = " or ".join(f"{NAMES[name]} ({_format(name, each.difference)})" for name, each in level.items())
    if won:
        behind = f", but falls behind it in {counted[1]}" if lost else ""
        return f"beats {verb} in {counted[0]}{behind}" + (f"; not in {same}" if same else "")
    start = f"falls behind {verb} in {counted[1]}" if lost else f"does not beat {verb}"
    return start + (f"; no difference is shown in {same}" if same else "")


def _sign(found: Tested) -> int:
    return int(np.sign(found.difference.value)) if found.is_shown else 0


def _count(name: str, found: Tested) -> str:
    scale, _, unit = UNITS[name]
    interval = found.difference
    low, high = sorted((abs(interval.ci_low), abs(interval.ci_high)))
    digits = 1 if unit == "points" else 2
    size = f"{scale * abs(interval.value):.{digits}f} {unit} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return f"{NAMES[name]} by {size}"


def _format(name: str, interval: Interval) -> str:
    scale, form, unit = UNITS[name]
    return format_interval(interval, form, scale, f" {unit}")


CONTROLS_TITLE = (
    "Differences from DPO scaled back and from DPO stopped early, which need no second training, at the same chosen "
    "likelihood (or, where marked, the same margin). Margins of log-ratios in nats; accuracy and, where answers were "
    "judged, win rate in points; 95 % intervals"
)


def tabulate_controls(controls: Controls) -> tuple[list[str], list[list[str]]]:
    """Returns columns and rows, a row for each run and control."""
    rows = []
    judged = [WINS] if any(WINS in check.differences for check in controls.checks) else []
    for check in controls.checks:
        cells = [_fill(check, name, "the same") for name in (CHOSEN, MARGIN, ACCURACY)]
        cells += [_fill(check, name, "-") for name in judged]
        share = f"{check.share:.2f}" if check.kind == SCALED else f"{100 * check.share:.0f} %"
        rows.append([check.name, f"{_SHORT[check.kind]} {share}", *cells])
    return ["run", "DPO", "chosen", "margin", "accuracy", *judged], rows


def _fill(check: Check, name: str, missing: str) -> str:
    scale, form, _ = UNITS[name]
    found = check.differences.get(name)
    return missing if found is None else format_interval(found.difference, form, scale)


SCALED_TITLE = "Differences from DPO scaled back, start + t (DPO - start), at equal chosen likelihood"
SCALED_NOTE = (
    "Margins are of log-ratios, in nats; accuracy is in points; brackets are 95 % intervals. A row that says "
    "“chosen” is compared at equal margin."
)


def summarize_controls(controls: Controls) -> tuple[list[str], list[list[str]]]:
    """Returns a narrow table, a row for each run beside DPO scaled back."""
    rows = []
    for check in controls.checks:
        if check.kind == SCALED:
            gain = _fill(check, MARGIN, "") or f"chosen {_fill(check, CHOSEN, '')}"
            rows.append([check.name, f"{check.share:.2f}", gain, _fill(check, ACCURACY, "-")])
    return ["run", "t", "margin", "accuracy"], rows
