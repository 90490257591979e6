"""How several models differ from a baseline, pair by pair: one object that `compare`, `report` and sweeps print from.

Every difference is model minus baseline over the pairs that both were scored on. The p-values of one metric are
adjusted by Holm over all models of the comparison, so that the chance of even one false alarm stays at 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.runs_table import find_series, tabulate_runs
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError, find_place, suggest_nearest
from dpotool.runs.about import repeat_import
from dpotool.stats.bootstrap import N_RESAMPLES, bootstrap_shares, has_repeats
from dpotool.stats.intervals import Interval
from dpotool.stats.paired import PairedDifference, adjust_metrics, compare_means, compare_shares
from dpotool.wording import count

MEAN_METRICS = ("chosen_logps", "rejected_logps", "chosen_displacement", "reward_margins")
SHARE_METRICS = ("reward_accuracy", "chosen_displaced_share")


@dataclass(frozen=True, slots=True)
class Difference:
    """A model minus the baseline, over the pairs that both were scored on."""

    n: int
    n_prompts: int | None
    """How many prompts these pairs have; None where a table does not say."""
    prompts_repeat: bool
    metrics: Mapping[str, PairedDifference | None]
    """One for each of MEAN_METRICS and SHARE_METRICS; None for what one of the two tables lacks."""
    accuracies: tuple[Interval, Interval] | None
    """Reward accuracy of the model and of the baseline."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the form of `--json`."""
        sides = zip(("model", "baseline"), self.accuracies or (), strict=False)
        return {
            "n": self.n,
            "n_prompts": self.n_prompts,
            "prompts_repeat": self.prompts_repeat,
            **{name: found and found.to_dict() for name, found in self.metrics.items()},
            "accuracies": {name: found.to_dict() for name, found in sides} if self.accuracies else None,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models against one of them."""

    runs: pd.DataFrame
    """Runs table (`compare.runs_table`), in the order given."""
    scored: list[ScoredRun]
    """The same runs with their pairs."""
    baseline: str
    """Label of the model the others are compared with."""
    differences: dict[str, Difference]
    """By label; the baseline has none."""
    problems: list[str]
    """Sentences on what limits the comparison, such as pairs that are not shared or another reference."""


def compare_runs(
    scored: Sequence[ScoredRun],
    *,
    baseline: str | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares each run with the baseline on the pairs that both were scored on.

    Args:
        baseline: label, folder name or path of a run; without it `choose_baseline` does.

    Raises DpotoolError when a run has no scored pair, two were scored on different data, or the baseline is not among
    them.
    """
    for run in scored:
        run.need_pairs()
    runs = tabulate_runs(scored)
    base = scored[choose_baseline(runs, baseline)]
    differences = {}
    for run in scored:
        if run is not base:
            _check_same_data(run, base)
            differences[run.label] = compare_pairs(run, base, n_resamples, seed)
    differences = adjust_differences(differences)
    return Comparison(runs, list(scored), base.label, differences, _find_problems(scored, base, differences))


def choose_baseline(runs: pd.DataFrame, name: str | None) -> int:
    """Returns the row of the run named by label, folder name or path.

    By default that is the last checkpoint where all are of one run, else the first DPO run, else the first run.

    Raises DpotoolError when no run is called that, naming the nearest.
    """
    if name is None:
        series = find_series(list(runs["model"]))
        return int((runs["loss"] == "dpo").to_numpy().argmax()) if series is None else series[1]
    paths = [Path(str(path)) for path in runs["path"]]
    for row, (label, path) in enumerate(zip(runs["label"], paths, strict=True)):
        if name in (label, find_place(path).name) or find_place(name) == find_place(path):
            return row
    known = {*runs["label"], *(find_place(path).name for path in paths)}
    raise DpotoolError(f"no run {name!r} to compare with", where="--baseline", remedy=suggest_nearest(name, known))


def _check_same_data(run: ScoredRun, base: ScoredRun) -> None:
    for key in ("data", "split"):
        ours, theirs = getattr(run.about, key), getattr(base.about, key)
        if None not in (ours, theirs) and ours != theirs:
            raise DpotoolError(
                f"scored on other pairs than {base.label}",
                where=str(run.path),
                expected=f"{key} {theirs}",
                got=str(ours),
                remedy=_say_how_to_match(run, base, key),
            )
    fingerprints = [each.about.fingerprints.data for each in (run, base)]
    shared = run.scored.index.intersection(base.scored.index)
    if not len(shared):
        raise DpotoolError(f"has no pair in common with {base.label}", where=str(run.path))
    prompts = [each.scored.loc[shared, "prompt_id"] for each in (run, base)]
    is_known = prompts[0].notna() & prompts[1].notna()
    is_changed = bool((prompts[0] != prompts[1])[is_known].any())
    # rows read under another --limit have another hash though the shared rows are the same: prompts decide if known
    if is_changed or (not is_known.all() and None not in fingerprints and len(set(fingerprints)) > 1):
        raise DpotoolError(
            f"scored on other pairs than {base.label} under the same name",
            where=str(run.path),
            expected=f"data {fingerprints[1]}",
            got=str(fingerprints[0]),
            remedy="The data has changed between the two; score both again",
        )


def _say_how_to_match(run: ScoredRun, base: ScoredRun, key: str) -> str:
    """How two runs get scores of one name: an imported file has the name given at its import, or the file's."""
    imported = next((each for each in (run, base) if each.about.imported_from), None)
    if imported is None:
        return f"Score both on the same with --data and --split, or choose with --{key}"
    other = base if imported is run else run
    folder, named = imported.folder, {key: getattr(other.about, key)}
    command = repeat_import(imported.config, imported.about, str(folder.path), **named)
    return f"If they are of the same pairs, import again: `{command}`"


def compare_pairs(run: ScoredRun, base: ScoredRun, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Difference:
    """Returns a run minus the baseline; its p-values are not adjusted yet."""
    shared = run.scored.index.intersection(base.scored.index)
    both = [each if each.scored.index.equals(shared) else each.restrict(shared) for each in (run, base)]
    ours, theirs = (each.columns for each in both)
    clusters = both[1].clusters if both[1].clusters is not None else both[0].clusters
    options: dict[str, Any] = {"clusters": clusters, "n_resamples": n_resamples, "seed": seed}
    metrics = {
        name: compare(ours[name], theirs[name], **options) if name in ours and name in theirs else None
        for names, compare in ((MEAN_METRICS, compare_means), (SHARE_METRICS, compare_shares))
        for name in names
    }
    accuracies = None
    if metrics["reward_accuracy"] is not None:
        sides = {"ours": ours["reward_accuracy"], "theirs": theirs["reward_accuracy"]}
        found = bootstrap_shares(sides, **options)
        accuracies = (found["ours"], found["theirs"])
    n_prompts = None if clusters is None else len(np.unique(clusters))
    return Difference(len(shared), n_prompts, has_repeats(clusters), metrics, accuracies)


def adjust_differences(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Returns the same differences with p-values adjusted by Holm over the models, for each metric separately."""
    adjusted = adjust_metrics([each.metrics for each in differences.values()])
    return {
        label: replace(each, metrics=metrics)
        for (label, each), metrics in zip(differences.items(), adjusted, strict=True)
    }


def _find_problems(scored: Sequence[ScoredRun], base: ScoredRun, differences: Mapping[str, Difference]) -> list[str]:
    problems = []
    for run in scored:
        if run.scored["chosen_logps"].isna().all():
            problems.append(
                f"{run.label} has rewards but no log-likelihoods, so only margins and accuracy are compared."
            )
        elif not run.is_referenced:
            problems.append(
                f"{run.label} was scored without a reference, so it has no rewards, accuracy or displacement."
            )
        if run is base:
            continue
        if run.beta != base.beta:
            problems.append(
                f"{run.label} has beta {run.beta}, {base.label} {base.beta}: "
                "their reward margins are on different scales; accuracies and log-likelihoods are not affected."
            )
        n_shared, n_most = differences[run.label].n, max(len(run.scored), len(base.scored))
        if n_shared < n_most:
            problems.append(
                f"{run.label} and {base.label} share {n_shared} of {count(n_most, 'scored pair')}. Differences and the "
                "recommendation use only the shared pairs; verdicts and values of a single model use all of its pairs."
            )
        shared = run.scored.index.intersection(base.scored.index)
        ours, theirs = (each.scored.loc[shared] for each in (run, base))
        if _differ(ours["chosen_tokens"], theirs["chosen_tokens"]):
            problems.append(
                f"{run.label} and {base.label} tokenize the pairs differently. Sums of log-probabilities can "
                "still be compared."
            )
        is_referenced = run.is_referenced and base.is_referenced
        if is_referenced and _differ(ours["ref_chosen_logps"], theirs["ref_chosen_logps"]):
            problems.append(f"{run.label} and {base.label} were measured against different references.")
    return problems


def _differ(ours: pd.Series, theirs: pd.Series) -> bool:
    """Whether two columns differ by more than the rounding of a float32 model in other batches explains."""
    one, other = (column.to_numpy(dtype=np.float64) for column in (ours, theirs))
    return not bool(np.allclose(one, other, rtol=1e-4, atol=1e-3, equal_nan=True))
