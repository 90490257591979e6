"""Several training runs of one setting: how much a difference from the baseline varies with the seed.

Two things are uncertain about the mean difference: which pairs were in the test set (A = variance over pairs of the
seeds' mean difference, over the number of pairs) and how training went (B = variance over seeds of the difference,
over the number of seeds). They add up; the interval is Welch's, t with (A + B)^2 / (A^2 / (n - 1) + B^2 / (S - 1))
degrees of freedom. With two or three seeds B is known badly, and the interval says so by its width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t

from dpotool.compare.differences import MEAN_METRICS, SHARE_METRICS, Comparison
from dpotool.compare.runs_table import describe_run, make_unique
from dpotool.compare.scored_run import ScoredRun
from dpotool.stats.bootstrap import CONFIDENCE, has_repeats, sum_clusters
from dpotool.stats.intervals import Interval
from dpotool.stats.paired import Tested, adjust_metrics

_NO_SETTING = (
    "seed", "split_seed", "output", "resume", "dry_run", "device", "batch_tokens", "layout", "trust_remote_code",
    "eval_data", "eval_split", "eval_limit", "eval_steps", "logging_steps", "save_steps", "save_at", "report_to",
    "monitor_theory",
)  # fmt: skip
"""What may differ between repetitions of one setting: the seed, and what says where, how and how often to look."""

_METRICS = (*MEAN_METRICS, *SHARE_METRICS)


@dataclass(frozen=True, kw_only=True)
class SeedDifference(Tested):
    """A mean difference over seeds and pairs, by Welch's t."""

    seed_sd: float
    """Standard deviation over the seeds."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        return {**super().to_dict(), "seed_sd": self.seed_sd}


@dataclass(frozen=True, slots=True)
class PooledSetting:
    """A setting that was trained, like the baseline's, with two or more of the same seeds."""

    label: str
    runs: dict[Any, str]
    """Seed -> label of its run."""
    baselines: dict[Any, str]
    """Seed -> label of the baseline's run."""
    n: int
    """Pairs that all of these were scored on."""
    metrics: dict[str, SeedDifference | None]
    """None without a reference."""

    @property
    def seeds(self) -> list[Any]:
        """The seeds, in their order."""
        return list(self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        about = {"label": self.label, "seeds": self.seeds, "n": self.n, "runs": self.runs, "baselines": self.baselines}
        return about | {name: found and found.to_dict() for name, found in self.metrics.items()}


def pool_seeds(comparison: Comparison) -> list[PooledSetting]:
    """Returns a row for each setting that was trained, like the baseline's, with two or more of the same seeds.

    Runs are of one setting where their run.yaml records the same of all that training depends on, but for the seed.
    Each is compared with the baseline's run of the same seed, and p-values are adjusted by Holm over the rows; where a
    setting has two runs of one seed, the later is left out, with a warning.
    """
    groups: dict[Hashable, dict[Any, ScoredRun]] = {}
    repeats: list[tuple[Hashable, str]] = []
    for run in sorted(comparison.scored, key=lambda run: run.label != comparison.baseline):  # the baseline first
        manifest = run.manifest
        setting = _find_setting(run.config)
        if groups.setdefault(setting, {}).setdefault(manifest.get("seed"), run) is not run:
            repeats.append((setting, run.label))
    base_setting, *others = groups
    base = groups[base_setting]
    pooled = {setting: groups[setting] for setting in others if len(groups[setting].keys() & base.keys()) > 1}
    left_out = [label for setting, label in repeats if pooled and (setting in pooled or setting == base_setting)]
    if left_out:
        what = "not in the table over seeds, as another run has the same settings and seed"
        warnings.warn(f"{what}: {', '.join(left_out)}", stacklevel=2)
    rows = [
        _pool(label, {seed: (run, base[seed]) for seed, run in runs.items() if seed in base})
        for label, runs in zip(_name_settings(pooled.values()), pooled.values(), strict=True)
    ]
    adjusted = adjust_metrics([row.metrics for row in rows])
    return [replace(row, metrics=metrics) for row, metrics in zip(rows, adjusted, strict=True)]


def find_repetitions(comparison: Comparison, labels: Collection[str]) -> set[str]:
    """Returns the labels of all runs of the same settings as any of these, themselves among them."""
    settings = {run.label: _find_setting(run.config) for run in comparison.scored}
    theirs = {settings[label] for label in labels}
    return {label for label, setting in settings.items() if setting in theirs}


def build_seeds_frame(seeds: Sequence[PooledSetting]) -> pd.DataFrame:
    """Returns a row per pooled setting, nothing rounded, in the columns of `compared_table.build_comparison_frame`.

    `label`, `is_baseline`, `n_shared`, `seeds` ("42 43"), and per metric `<metric>_difference` with `_low` and
    `_high`, and `<metric>_seed_sd`.
    """
    names = {"mean": "difference", "ci_low": "difference_low", "ci_high": "difference_high"}
    rows = []
    for pooled in seeds:
        row: dict[str, Any] = {"label": pooled.label, "is_baseline": False, "n_shared": pooled.n}
        row["seeds"] = " ".join(map(str, pooled.seeds))
        for metric, found in pooled.metrics.items():
            values = {} if found is None else found.difference.to_dict("mean")
            row |= {f"{metric}_{column}": values.get(key) for key, column in names.items()}
            row[f"{metric}_seed_sd"] = None if found is None else found.seed_sd
        rows.append(row)
    return pd.DataFrame(rows)


def _find_setting(config: Mapping[str, Any]) -> Hashable:
    """The settings of a run's training. One that is not set is the same as one that an older version did not have."""
    return frozenset(
        (name, value if isinstance(value, Hashable) else str(value))
        for name, value in config.items()
        if name not in _NO_SETTING and value is not None
    )


def _name_settings(pooled: Iterable[Mapping[Any, ScoredRun]]) -> list[str]:
    """Labels of the settings; those that differ in what no label says are called by their first run's folder too."""
    first = [next(iter(runs.values())) for runs in pooled]
    return make_unique([describe_run(run.config) for run in first], [run.folder for run in first])


def _pool(label: str, pairs: Mapping[Any, tuple[ScoredRun, ScoredRun]]) -> PooledSetting:
    shared = None
    for runs in pairs.values():
        for run in runs:
            shared = run.scored.index if shared is None else shared.intersection(run.scored.index)
    assert shared is not None
    both = [tuple(run.restrict(shared) for run in runs) for runs in pairs.values()]
    columns = [tuple(_to_numbers(run) for run in runs) for runs in both]
    clusters = both[0][0].clusters
    metrics = {}
    for name in _METRICS:
        is_known = all(name in side for sides in columns for side in sides)
        differences = [ours[name] - theirs[name] for ours, theirs in columns] if is_known else []
        metrics[name] = combine_seeds(differences, clusters) if is_known else None
    ours, theirs = ({seed: pairs[seed][side].label for seed in sorted(pairs)} for side in (0, 1))
    return PooledSetting(label, ours, theirs, len(shared), metrics)


def _to_numbers(run: ScoredRun) -> dict[str, np.ndarray]:
    return {name: np.asarray(values, dtype=np.float64) for name, values in run.columns.items()}


def combine_seeds(differences: Sequence[np.ndarray], clusters: np.ndarray | None) -> SeedDifference:
    """Returns the mean over seeds and pairs with Welch's interval; `differences` has an array over pairs per seed."""
    by_seed = np.array([each.mean() for each in differences])
    over_pairs = np.mean(differences, axis=0)
    mean = float(by_seed.mean())
    deviations = over_pairs - mean
    if has_repeats(clusters):
        deviations = sum_clusters(deviations[:, None], clusters)[:, 0]
    n, n_seeds = len(deviations), len(by_seed)
    from_pairs = float(np.sum(deviations**2)) / len(over_pairs) ** 2 * n / max(1, n - 1)
    from_seeds = float(by_seed.var(ddof=1)) / n_seeds
    total = from_pairs + from_seeds
    seed_sd = float(by_seed.std(ddof=1))
    if not total > 0:
        p_value = math.nan if mean else 1.0  # no spread at all to measure a difference by
        return SeedDifference(difference=Interval(mean, mean, mean), seed_sd=seed_sd, p_value=p_value)
    freedom = total**2 / (from_pairs**2 / max(1, n - 1) + from_seeds**2 / (n_seeds - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total)
    p_value = 2 * float(t.sf(abs(mean) / math.sqrt(total), freedom))
    return SeedDifference(difference=Interval(mean, mean - half, mean + half), seed_sd=seed_sd, p_value=p_value)
