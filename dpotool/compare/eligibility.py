"""Which runs are shown to be no worse than the baseline: paired non-inferiority, each condition checked separately.

A run is eligible when the paired 95 % interval of its accuracy difference lies above -delta, the interval of its
accuracy lies above 50 %, it shares at least SHARED of the baseline's scored pairs, and the interval of its margin,
less the stated share of the baseline's, lies above zero. Few pairs give wide intervals, so they admit less, never more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.differences import Comparison, Difference, compare_pairs
from dpotool.compare.runs_table import read_interval
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.seeds import PooledSetting, SeedDifference, combine_seeds
from dpotool.stats.bootstrap import bootstrap_means
from dpotool.stats.intervals import Interval
from dpotool.stats.paired import PairedDifference, Tested, adjust_family, read_difference
from dpotool.stats.power import count_pairs_needed

SHARED = 0.95
"""Least share of the baseline's scored pairs that a run must have finite values for."""
COIN = 0.5
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Rule:
    """What a remedy may cost."""

    delta: float = 3.0
    """Points of reward accuracy whose loss must be ruled out."""
    margin_share: float = 0.5
    """Share of the baseline's mean margin that a run must reach."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run, or a setting with all its seeds, against the baseline."""

    name: str
    run: str
    """Label of the run; of a setting, of the one with the baseline's seed."""
    rule: Rule
    chosen: Tested
    """Difference in mean chosen log-likelihood, nats."""
    accuracy_difference: Interval | None
    """Model minus baseline, a share between -1 and 1; None where it is not known."""
    accuracy: Interval | None
    """Accuracy of the run; of a setting, that of its worst seed."""
    margin_left: Interval | None
    """Mean of margin - share * baseline's margin, nats of log-ratio if beta is known; above 0 it is reached."""
    margin_kept: float
    """Its mean margin over the baseline's; NaN where not known."""
    n: int
    n_baseline: int
    """Scored pairs of the baseline."""
    n_discordant: int | None
    """Pairs that only one of the two ranks right; None for a setting with several seeds."""
    n_prompts: int | None = None
    seeds: tuple[Any, ...] = field(default=())
    """Of a setting that was trained with several; empty for a run."""

    @property
    def gain(self) -> Interval:
        """Difference in mean chosen log-likelihood, nats."""
        return self.chosen.difference

    @property
    def failures(self) -> tuple[str, ...]:
        """The conditions it is not shown to meet, of `accuracy unknown`, `pairs`, `loss`, `coin`, `margin`."""
        if self.accuracy_difference is None or self.accuracy is None:
            return ("accuracy unknown",)
        checks = {
            "pairs": self.n >= SHARED * self.n_baseline - _ROUNDING,
            "loss": self.accuracy_difference.ci_low > -self.rule.delta / 100,
            "coin": self.accuracy.ci_low > COIN,
            "margin": self.margin_left is not None and self.margin_left.ci_low > 0,
        }
        return tuple(name for name, is_met in checks.items() if not is_met)  # an end that is NaN meets nothing

    @property
    def is_eligible(self) -> bool:
        """Whether it is shown to be no worse than the rule allows."""
        return not self.failures

    @property
    def is_gaining(self) -> bool:
        """Whether its chosen log-likelihood is shown to be higher than the baseline's."""
        return self.chosen.is_shown and self.gain.value > 0

    @property
    def n_needed(self) -> float:
        """Pairs at which a loss of delta would be ruled out with 80 % power if there were none; NaN where not known."""
        if self.n_discordant is None:
            return math.nan
        return count_pairs_needed(self.n_discordant / self.n, self.rule.delta / 100)


def list_candidates(
    comparison: Comparison, seeds: Sequence[PooledSetting], left_out: Collection[str], rule: Rule
) -> list[Candidate]:
    """Returns every run but those left out, then every setting with several seeds, as far as likelihoods are known."""
    runs = {run.label: run for run in comparison.scored}
    base = runs[comparison.baseline]
    found = [
        _measure_run(runs[label], base, difference, chosen, rule)
        for label, difference in comparison.differences.items()
        if label not in left_out and (chosen := difference.metrics["chosen_logps"]) is not None
    ]
    rows = {str(row["label"]): row for row in comparison.runs.to_dict("records")}
    for row in seeds:
        kept = row.metrics["chosen_logps"]
        if kept is not None:
            found.append(_measure_setting(row, runs, base, kept, rows, rule))
    return found


def measure_alone(run: ScoredRun, base: ScoredRun, rule: Rule) -> Candidate:
    """Returns a run that is not part of a comparison, against a baseline; both have log-likelihoods."""
    difference = compare_pairs(run, base)
    found = difference.metrics["chosen_logps"]
    assert found is not None
    [chosen] = adjust_family([found])
    return _measure_run(run, base, difference, chosen, rule)


def _measure_run(
    run: ScoredRun, base: ScoredRun, difference: Difference, chosen: PairedDifference, rule: Rule
) -> Candidate:
    """The accuracy of a run on the pairs that it shares with the baseline."""
    accuracy, accuracies = difference.metrics["reward_accuracy"], difference.accuracies
    left, kept = _measure_margin([(run, base)], rule.margin_share)
    return Candidate(
        name=run.label,
        run=run.label,
        rule=rule,
        chosen=chosen,
        accuracy_difference=read_difference(accuracy),
        accuracy=None if accuracies is None else accuracies[0],
        margin_left=left,
        margin_kept=kept,
        n=difference.n,
        n_baseline=base.n,
        n_discordant=None if accuracy is None or accuracy.discordant is None else sum(accuracy.discordant),
        n_prompts=difference.n_prompts,
    )


def _measure_setting(
    row: PooledSetting,
    runs: Mapping[str, ScoredRun],
    base: ScoredRun,
    chosen: SeedDifference,
    rows: Mapping[str, Mapping[Hashable, Any]],
    rule: Rule,
) -> Candidate:
    """A setting with several seeds, against the baseline of the same seeds; its intervals cover training too."""
    ours, theirs = list(row.runs.values()), list(row.baselines.values())
    run = row.runs.get(base.manifest.get("seed")) or ours[0]
    accuracy = row.metrics["reward_accuracy"]
    accuracies = [read_interval(rows[label], "reward_accuracy") for label in ours]
    left, kept = _measure_margin([(runs[a], runs[b]) for a, b in zip(ours, theirs, strict=True)], rule.margin_share)
    return Candidate(
        name=row.label,
        run=run,
        rule=rule,
        chosen=chosen,
        accuracy_difference=read_difference(accuracy),
        accuracy=None if accuracy is None else min(accuracies, key=lambda each: each.ci_low),
        margin_left=left,
        margin_kept=kept,
        n=row.n,
        n_baseline=base.n,
        n_discordant=None,
        seeds=tuple(row.seeds),
    )


def _measure_margin(sides: Sequence[tuple[ScoredRun, ScoredRun]], share: float) -> tuple[Interval | None, float]:
    """Of margin - share * baseline's margin the interval over the same pairs, and the share that the run reaches.

    Args:
        sides: model and baseline; several for a setting with several seeds, whose interval covers training too.
    """
    everyone = [run for pair in sides for run in pair]
    shared = everyone[0].scored.index
    for run in everyone:
        shared = shared.intersection(run.scored.index)
    is_scaled = all(run.beta for run in everyone)
    margins = [[_read_margins(run, shared, is_scaled) for run in pair] for pair in sides]
    if not np.isfinite(margins).all():
        return None, math.nan
    left = [ours - share * theirs for ours, theirs in margins]
    clusters = everyone[-1].restrict(shared).clusters
    if len(left) > 1:
        interval = combine_seeds(left, clusters).difference
    else:
        interval = bootstrap_means({"": left[0]}, clusters=clusters)[""]
    ours, theirs = np.mean(margins, axis=(0, 2))
    return interval, float(ours / theirs) if theirs else math.nan


def _read_margins(run: ScoredRun, shared: pd.Index, is_scaled: bool) -> np.ndarray:
    """Margins of these pairs; of log-ratios in nats where every beta is known, so that they are on one scale."""
    margins = run.scored.loc[shared, "reward_margins"].to_numpy(dtype=np.float64)
    return margins / run.beta if is_scaled and run.beta else margins
