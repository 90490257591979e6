"""How several models differ from a baseline, pair by pair: one object that `compare`, `report` and sweeps print from.

Every difference is model minus baseline over the pairs that both were scored on. The p-values of one metric are
adjusted by Holm over all models of the comparison, so that the chance of even one false alarm stays at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.comparison import tabulate_runs
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.runs.commands import repeat_import
from dpotool.stats.bootstrap import N_RESAMPLES, bootstrap_shares, has_repeats
from dpotool.stats.paired import ALPHA, adjust_holm, compare_means, compare_shares

MEAN_METRICS = ("chosen_logps", "rejected_logps", "chosen_displacement", "reward_margins")
SHARE_METRICS = ("reward_accuracy", "chosen_displaced_share")
NEEDS_REFERENCE = ("chosen_displacement", "reward_margins", *SHARE_METRICS)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models against one of them."""

    runs: pd.DataFrame
    """Runs table (`compare.comparison`), in the order given."""
    scored: list[ScoredRun]
    """The same runs with their pairs."""
    baseline: str
    """Label of the model the others are compared with."""
    differences: dict[str, dict[str, Any]]
    """label -> `n`, `n_prompts` and, per metric, a PairedDifference as a dict with `p_adjusted`; None without one.

    And `accuracies`: reward accuracy of `model` and `baseline` with intervals, on the pairs they share; or None.
    """
    problems: list[str]
    """What stands in the way of reading the differences plainly, as sentences."""


def compare_runs(
    scored: Sequence[ScoredRun],
    *,
    baseline: str | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compares each run with the baseline on the pairs that both were scored on.

    Args:
        baseline: label, folder name or path of a run; without it the first DPO run, else the first run.

    Raises DpotoolError when a run has no scored pair, two were scored on different data, or the baseline is not among
    them.
    """
    for run in scored:
        if not run.n:
            raise DpotoolError("no scored pair to compare", where=str(run.path), remedy="Its summary says why")
    runs = tabulate_runs(scored)
    base = scored[choose_baseline(runs, baseline)]
    differences = {}
    for run in scored:
        if run is not base:
            _check_same_data(run, base)
            differences[run.label] = compare_pairs(run, base, n_resamples, seed)
    adjust_family(differences.values())
    return Comparison(runs, list(scored), base.label, differences, _find_problems(scored, base, differences))


def choose_baseline(runs: pd.DataFrame, name: str | None) -> int:
    """Returns the row of the run named by label, folder name or path; by default of the first DPO run, else the first.

    Raises DpotoolError when no run is called that, naming the nearest.
    """
    if name is None:
        is_dpo = (runs["loss"] == "dpo").to_numpy()
        return int(is_dpo.argmax())
    paths = [Path(str(path)) for path in runs["path"]]
    for row, (label, path) in enumerate(zip(runs["label"], paths, strict=True)):
        if name in (label, path.resolve().name) or Path(name).resolve() == path.resolve():
            return row
    known = {*runs["label"], *(path.resolve().name for path in paths)}
    raise DpotoolError(f"no run {name!r} to compare with", where="--baseline", remedy=suggest_nearest(name, known))


def is_beyond_chance(difference: Mapping[str, Any] | None) -> bool:
    """Whether the adjusted p-value of a metric's difference is below ALPHA; False where there is none."""
    p_value = (difference or {}).get("p_adjusted")
    return p_value is not None and p_value < ALPHA


def excludes_zero(interval: Mapping[str, float]) -> bool:
    """Whether the whole interval lies on one side of zero."""
    return bool(interval["ci_low"] > 0 or interval["ci_high"] < 0)


def is_shown(difference: Mapping[str, Any] | None) -> bool:
    """Whether a metric's difference can be claimed: its interval and its adjusted test both say so.

    Neither alone will do. Bootstrap intervals are too narrow for few pairs (of five with no true difference one in six
    leaves zero out), and know nothing of how many models are compared.
    """
    return difference is not None and is_beyond_chance(difference) and excludes_zero(difference["difference"])


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
    """How two runs get scores of one name: an imported file was named by whoever imported it, else after itself."""
    imported = next((each for each in (run, base) if each.about.imported_from), None)
    if imported is None:
        return f"Score both on the same with --data and --split, or choose with --{key}"
    other = base if imported is run else run
    folder, named = imported.folder, {key: getattr(other.about, key)}
    command = repeat_import(imported.config, imported.about, str(folder.path), **named)
    return f"If they are of the same pairs, import again: `{command}`"


def compare_pairs(run: ScoredRun, base: ScoredRun, n_resamples: int = N_RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Returns an entry of `Comparison.differences`, before its p-values are adjusted."""
    shared = run.scored.index.intersection(base.scored.index)
    both = [each.restrict(shared) for each in (run, base)]
    sides = [each.columns for each in both]
    clusters = both[1].clusters if both[1].clusters is not None else both[0].clusters
    options: dict[str, Any] = {"clusters": clusters, "n_resamples": n_resamples, "seed": seed}
    result: dict[str, Any] = {
        "n": len(shared),
        "n_prompts": None if clusters is None else len(np.unique(clusters)),
        "prompts_repeat": has_repeats(clusters),
    }
    for metrics, compare in ((MEAN_METRICS, compare_means), (SHARE_METRICS, compare_shares)):
        for name in metrics:
            has_both = name in sides[0] and name in sides[1]
            result[name] = compare(sides[0][name], sides[1][name], **options).to_dict() if has_both else None
    result["accuracies"] = None
    if result["reward_accuracy"] is not None:
        shares = dict(zip(("model", "baseline"), (side["reward_accuracy"] for side in sides), strict=True))
        found = bootstrap_shares(shares, **options)
        result["accuracies"] = {name: interval.to_dict() for name, interval in found.items()}
    return result


def adjust_family(differences: Collection[Mapping[str, Any]]) -> None:
    """Adds `p_adjusted` to every metric of these differences: Holm over them, each metric a family of its own."""
    for name in (*MEAN_METRICS, *SHARE_METRICS):
        family = [difference[name] for difference in differences if difference[name] is not None]
        adjusted = adjust_holm([member["p_value"] for member in family])
        for member, p_value in zip(family, adjusted, strict=True):
            member["p_adjusted"] = None if math.isnan(p_value) else p_value


def _find_problems(
    scored: Sequence[ScoredRun], base: ScoredRun, differences: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    problems = []
    for run in scored:
        if run.scored["chosen_logps"].isna().all():
            problems.append(f"{run.label} has rewards but no log-likelihoods: only margins and accuracy compare.")
        elif not run.is_referenced:
            problems.append(f"{run.label} was scored without a reference: no rewards, accuracy or displacement.")
        if run is base:
            continue
        if run.beta != base.beta:
            problems.append(
                f"{run.label} has beta {run.beta}, {base.label} {base.beta}: "
                "their reward margins are on different scales; accuracies and log-likelihoods are not affected."
            )
        n_shared, n_most = differences[run.label]["n"], max(len(run.scored), len(base.scored))
        if n_shared < n_most:
            problems.append(
                f"{run.label} and {base.label} share {n_shared} of {n_most} scored pairs; differences and the "
                "recommendation count only these, verdicts and what is said of one model by itself all of its own."
            )
        shared = run.scored.index.intersection(base.scored.index)
        ours, theirs = (each.scored.loc[shared] for each in (run, base))
        if _differ(ours["chosen_tokens"], theirs["chosen_tokens"]):
            problems.append(f"{run.label} and {base.label} tokenize the pairs differently; sums of logs still compare.")
        is_referenced = run.is_referenced and base.is_referenced
        if is_referenced and _differ(ours["ref_chosen_logps"], theirs["ref_chosen_logps"]):
            problems.append(f"{run.label} and {base.label} were measured against different references.")
    return problems


def _differ(ours: pd.Series, theirs: pd.Series) -> bool:
    """Whether two columns differ by more than another batching of the same float32 model can bring about."""
    one, other = (column.to_numpy(dtype=np.float64) for column in (ours, theirs))
    return not bool(np.allclose(one, other, rtol=1e-4, atol=1e-3, equal_nan=True))
