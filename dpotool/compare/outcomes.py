"""What a sweep's runs did to likelihoods on the scale of the forecast: per nat of mean margin that DPO's run gained."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from dpotool.compare.scored_run import SIDES, ScoredRun
from dpotool.stats.bootstrap import bootstrap_means, bootstrap_ratios, read_clusters

COLUMNS = ("label", "lambda", "n", "data", "split")
SHARED = ("beta", "data", "split")
"""What a run and the DPO run it is measured by have in common."""
_DPO = 1.0


def measure_outcomes(runs: pd.DataFrame, scored: Mapping[str, ScoredRun], *, seed: int = 0) -> pd.DataFrame:
    """Returns a row per run of a fixed lambda whose sweep has a DPO run to compare with; no row for other runs.

    Columns: `label`, `lambda`, `n`, `data`, `split`, and with `_low` and `_high` `chosen_change` and `rejected_change`
    (mean log pi - log pi_ref over DPO's mean gain in margin, nats per nat; pairs scored in both, pairs of one prompt
    resampled together) and `reward_accuracy`. A run's DPO is that of its own beta and test pairs, and of its own seed
    where there is one. One whose mean margin cannot be told from none gives no scale.

    Args:
        runs: runs table (`compare.runs_table`).
        scored: label -> run.
    """
    fixed = runs[runs["lambda"].notna()] if len(runs) else runs
    rows = []
    for _, run in fixed.iterrows():
        own, base = _read_changes(scored[run["label"]]), _find_base(run, fixed, scored)
        if own is None or base is None:
            continue
        both = own.join(base, how="inner", rsuffix="_dpo")
        gain, clusters = both["chosen_dpo"] - both["rejected_dpo"], read_clusters(both)
        if not bootstrap_means({"": gain}, clusters=clusters, seed=seed)[""].ci_low > 0:
            continue
        ratios = {f"{side}_change": (both[side], gain) for side in ("chosen", "rejected")}
        row = {name: run[name] for name in COLUMNS} | {"n": len(both)}
        for name, interval in bootstrap_ratios(ratios, clusters=clusters, seed=seed).items():
            row |= {name: interval.value, f"{name}_low": interval.ci_low, f"{name}_high": interval.ci_high}
        rows.append(row | {name: run[name] for name in run.index if name.startswith("reward_accuracy")})
    return pd.DataFrame(rows)


def _find_base(run: pd.Series, fixed: pd.DataFrame, scored: Mapping[str, ScoredRun]) -> pd.DataFrame | None:
    """The changes under the DPO run that a run is measured by."""
    same = fixed[(fixed["lambda"] == _DPO) & (fixed[list(SHARED)] == run[list(SHARED)]).all(axis=1)]
    if same.empty:
        return None
    twins = same[same["seed"] == run["seed"]]
    return _read_changes(scored[(twins if len(twins) else same).iloc[0]["label"]])


def _read_changes(run: ScoredRun) -> pd.DataFrame | None:
    """Returns log pi - log pi_ref of chosen and rejected (nats) and the prompt by pair; None without a reference."""
    names = {f"{side}_displacement": side for side in SIDES}
    return run.scored.rename(columns=names)[[*SIDES, "prompt_id"]] if run.is_referenced else None
