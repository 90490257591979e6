"""Compares each run with DPO scaled back and DPO stopped early at the same chosen likelihood, as these cost nothing.

Between two neighbours on a control's curve the control is taken to be the chord. Its means can really be had, by
answering with one of the two models at random; no single pair has such a score.

A run is compared with the mixture c of two neighbours that has the run's own mean chosen likelihood x. The mixture was
chosen by these same pairs, which the interval must know: with S the chord's slope, the pair values

    d = (y_run - y_c) - S (x_run - x_c)

have the difference as their mean, and the spread that the delta method gives it (tests/compare/test_controls.py draws
the mixture anew in every resample, and finds the same interval). Where no model of the control is as likely to give the
chosen answers, x and y change places: the chosen likelihood is compared at the same margin.

Win rates are compared in the same way, over the pairs whose answers were judged, on the curve through those of its
models that were judged. The finished DPO run has one half against itself. A setting with several seeds is compared by
the d of each seed, whose interval then covers pairs and training (`compare.seeds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.controls import (
    ACCURACY,
    CHOSEN,
    MARGIN,
    UNITS,
    WINS,
    Check,
    Controls,
    Curve,
    Values,
    find_curves,
    read_columns,
)
from dpotool.compare.differences import Comparison
from dpotool.compare.runs_table import describe_run
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.seeds import PooledSetting, SeedDifference, combine_seeds, find_repetitions
from dpotool.compare.win_rates import Outcomes, read_outcomes
from dpotool.stats.paired import Tested, adjust_metrics, compare_means

Columns = Mapping[str, Values]
_ORDER = ((CHOSEN, (MARGIN, ACCURACY)), (MARGIN, (CHOSEN, ACCURACY)))
"""What both are to have the same of, and what is then compared, the first of these by preference."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A run beside one control, pair by pair."""

    at: str
    """What both have the same of."""
    share: float
    """Of the mixture it is compared with."""
    values: dict[str, Values]
    """Metric -> the d of the module's text."""
    clusters: np.ndarray | None


def check_controls(comparison: Comparison, seeds: Sequence[PooledSetting] = (), *, seed: int = 0) -> Controls:
    """Compares every run, except repetitions of the baseline, with the controls of the DPO run of its seed.

    Args:
        seeds: settings trained with several seeds (`seeds.pool_seeds`), each of which is compared as a whole too.
        seed: of the resamples.
    """
    runs = {run.label: run for run in comparison.scored}
    own = find_repetitions(comparison, {comparison.baseline})
    by_label = {label: find_curves(runs[label]) for label in sorted(own)}
    by_seed = {runs[label].manifest.get("seed"): curves for label, curves in by_label.items()}
    curves = find_curves(runs[comparison.baseline])
    points = [point.run for each in by_label.values() for curve in each for point in curve.points]
    outcomes = read_outcomes([run.folder for run in (*comparison.scored, *points) if run.path is not None])
    checks = []
    for label, run in runs.items():
        if label not in own and run.is_referenced:
            theirs = by_seed.get(run.manifest.get("seed")) or curves
            checks += [
                check for curve in theirs if (check := check_run(run, curve, outcomes=outcomes, seed=seed)) is not None
            ]
    checks += [check for row in seeds for check in _check_setting(row, runs, by_label, outcomes)]
    _adjust(checks)
    return Controls(curves, tuple(checks))


def _adjust(checks: Sequence[Check]) -> None:
    """Holm over the runs, and over the settings, of each control and metric."""
    for kind, has_seeds in {(each.kind, bool(each.seeds)) for each in checks}:
        family = [each for each in checks if (each.kind, bool(each.seeds)) == (kind, has_seeds)]
        adjusted = adjust_metrics([{name: each.differences.get(name) for name in UNITS} for each in family])
        for each, found in zip(family, adjusted, strict=True):
            each.differences.update({name: difference for name, difference in found.items() if difference is not None})


def check_run(run: ScoredRun, curve: Curve, *, outcomes: Outcomes | None = None, seed: int = 0) -> Check | None:
    """Compares a run with a control at the same chosen likelihood, else at the same margin; None without either."""
    found = weigh_run(run, curve)
    if found is None:
        return None
    differences: dict[str, Tested] = {name: _compare(d, found.clusters, seed) for name, d in found.values.items()}
    judged = None if outcomes is None else weigh_win_rate(run, curve, outcomes)
    if judged is not None:
        differences[WINS] = _compare(judged.values[WINS], judged.clusters, seed)
    return Check(run.label, curve.kind, found.at, found.share, differences)


def _compare(d: Values, clusters: np.ndarray | None, seed: int) -> Tested:
    return compare_means(d, np.zeros(len(d)), clusters=clusters, seed=seed)


def _check_setting(
    row: PooledSetting,
    runs: Mapping[str, ScoredRun],
    curves: Mapping[str, Sequence[Curve]],
    outcomes: Outcomes | None,
) -> list[Check]:
    """Compares a setting with the controls of the DPO runs of its seeds, where every seed has its place on them."""
    sides = [(runs[row.runs[seed]], curves.get(row.baselines[seed], ())) for seed in row.seeds]
    kinds = [curve.kind for curve in sides[0][1]]
    checks = []
    for kind in kinds:
        pairs = [(run, curve) for run, theirs in sides for curve in theirs if curve.kind == kind]
        if len(pairs) < len(sides):
            continue
        shared = _intersect(run.scored.index.intersection(curve.pair_ids) for run, curve in pairs)
        found = [weigh_run(run, curve, shared) for run, curve in pairs]
        whole = [each for each in found if each is not None]
        if len(whole) < len(found) or len({each.at for each in whole}) > 1:
            continue
        differences: dict[str, Tested] = {name: _combine(whole, name) for name in whole[0].values}
        judged = [None if outcomes is None else weigh_win_rate(run, curve, outcomes) for run, curve in pairs]
        known = [each for each in judged if each is not None]
        if len(known) == len(judged) and len({len(each.values[WINS]) for each in known}) == 1:
            differences[WINS] = _combine(known, WINS)
        share = float(np.mean([each.share for each in whole]))
        checks.append(Check(row.label, kind, whole[0].at, share, differences, tuple(row.seeds)))
    return checks


def _intersect(indices: Any) -> pd.Index:
    first, *others = indices
    for other in others:
        first = first.intersection(other)
    return first


def _combine(found: Sequence[Weighed], name: str) -> SeedDifference:
    return combine_seeds([each.values[name] for each in found], found[0].clusters)


def weigh_run(run: ScoredRun, curve: Curve, shared: pd.Index | None = None) -> Weighed | None:
    """Returns the pair values of a run beside a control; None where no place of it is like the run.

    Args:
        shared: the pairs to take; all that both were scored on without it.
    """
    shared = run.scored.index.intersection(curve.pair_ids) if shared is None else shared
    if not len(shared):
        return None
    restricted = run.restrict(shared)
    shares, theirs = curve.read(shared)
    return _weigh(read_columns(restricted), shares, theirs, _ORDER, restricted.clusters)


def _weigh(
    ours: Columns,
    shares: Sequence[float],
    theirs: Sequence[Columns],
    order: Sequence[tuple[str, tuple[str, ...]]],
    clusters: np.ndarray | None,
) -> Weighed | None:
    for at, others in order:
        place = _find_place(ours, theirs, at, best_in=others[0])
        if place is None:
            continue
        first, weight = place
        values = {name: compare_on_chord(ours, theirs[first], theirs[first + 1], weight, at, name) for name in others}
        return Weighed(at, (1 - weight) * shares[first] + weight * shares[first + 1], values, clusters)
    return None


def weigh_win_rate(run: ScoredRun, curve: Curve, outcomes: Outcomes) -> Weighed | None:
    """Returns the pair values of a run's win rate beside a control's; None where not both were judged.

    Only where the judge's questions are the prompts of the pairs that were scored: then a question is a pair.
    """
    full = curve.full
    if outcomes.questions != f"{full.data}-{full.split}" or outcomes.baseline not in _labels(full):
        return None
    judged = tuple(point for point in curve.points if point.run.folder.path in outcomes.by_folder)
    if not judged or run.path is None or run.folder.path not in outcomes.by_folder:
        return None
    curve = replace(curve, points=judged)
    shared = run.scored.index.intersection(curve.pair_ids)
    series = [outcomes.by_folder[each.folder.path] for each in (run, *(point.run for point in judged))]
    known = _intersect(each.index for each in series)
    shared = shared[shared.astype(str).isin(known)]
    if not len(shared):
        return None
    restricted, names = run.restrict(shared), shared.astype(str)
    ours, *theirs = [each.loc[names].to_numpy(dtype=np.float64) for each in series]
    shares, columns = curve.read(shared)  # without the start, which nobody judged
    points = zip(columns[1:], [*theirs, np.full(len(shared), 0.5)], strict=True)
    beside = [{**each, WINS: wins} for each, wins in points]
    own = {**read_columns(restricted), WINS: ours}
    return _weigh(own, shares[1:], beside, ((CHOSEN, (WINS,)),), restricted.clusters)


def _labels(run: ScoredRun) -> set[str]:
    return {run.label, describe_run(run.config)}


def _find_place(ours: Columns, theirs: Sequence[Columns], at: str, best_in: str) -> tuple[int, float] | None:
    """Returns the chord that reaches the run's mean of `at`, and the place on it (0 to 1); of several the best one."""
    wanted = ours[at].mean()
    means = [each[at].mean() for each in theirs]
    found = []
    for first, (low, high) in enumerate(pairwise(means)):
        if low != high and min(low, high) <= wanted <= max(low, high):
            weight = float((wanted - low) / (high - low))
            value = (1 - weight) * theirs[first][best_in].mean() + weight * theirs[first + 1][best_in].mean()
            found.append((value, first, weight))
    return max(found)[1:] if found else None


def compare_on_chord(ours: Columns, low: Columns, high: Columns, weight: float, at: str, name: str) -> Values:
    """Returns the pair values d of the module's text, y being `name` and x being `at`."""
    slope = (high[name].mean() - low[name].mean()) / (high[at].mean() - low[at].mean())
    x, y = (ours[each] - ((1 - weight) * low[each] + weight * high[each]) for each in (at, name))
    return np.asarray(y - slope * x, dtype=np.float64)
