"""Which theory table is a forecast of which runs, how well it ordered them, and what the runs did on its scale.

That scale is a change of log-likelihood per nat of mean margin that DPO's run gained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from dpotool.compare.scored_run import SIDES, ScoredRun
from dpotool.errors import find_place
from dpotool.runs.about import read_metadata
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import read_summary
from dpotool.stats.bootstrap import bootstrap_means, bootstrap_ratios, read_clusters
from dpotool.wording import count

ADVICE, PAPER = "The forecast of theory-gap", "Theorem 2.1 as printed"
_NO_SCALE = (
    "On these pairs DPO's mean margin cannot be distinguished from 0, so only the order of the predicted "
    "changes means something, not their size."
)
_MIN_RANKED = 3
"""Lambdas from which a rank agreement is worth stating: two agree by chance half of the time."""


COLUMNS = ("label", "lambda", "n", "data", "split")
SHARED = ("beta", "data", "split")
"""What a run and the DPO run it is measured by have in common."""
_DPO = 1.0


def find_theory(folders: Sequence[RunFolder], runs: pd.DataFrame) -> Path | None:
    """Returns the first folder's newest table of `theory-gap` that is a forecast of any of these runs.

    None where there is none with a summary. Raises DpotoolError when a table or summary cannot be read.

    Args:
        runs: runs table (`compare.runs_table`).
    """
    for folder in folders:
        for table in folder.list_tables("theory"):
            if len(select_forecast(read_metadata(table), runs)) and read_summary(table, "theory") is not None:
                return table
    return None


def select_forecast(about: Mapping[str, Any], runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of a runs table that a theory table is a forecast of.

    Runs that started from the very model it is of, on whose pairs, or those they were scored on, it was taken. None
    where that model had left its reference: what follows training is no forecast of it.

    Args:
        about: the theory table's metadata.
    """
    if about.get("at_reference") is not True or runs.empty:
        return runs.iloc[:0]
    return runs[[_is_of(about, run) for run in runs.to_dict("records")]]


def _is_of(about: Mapping[str, Any], run: Mapping[Any, Any]) -> bool:
    model, start = about.get("model"), run["model"]
    if not (model and start and find_place(str(start)) == find_place(str(model))):
        return False
    parts = RunFolder(Path(run["path"])).read_manifest()["data"].values()
    names = {run["data"], *(part.get("name") for part in parts if isinstance(part, Mapping))}
    return about.get("data") in names


def check_theory(runs: pd.DataFrame, theory: Mapping[str, Any]) -> dict[str, Any] | None:
    """Lays what `theory-gap` predicted beside what the runs measured, a row per constant lambda, DPO among them.

    With `advice` in the summary the prediction is the forecast, nats of change per nat of mean margin that DPO gains,
    times the margin DPO did gain. Without it, it is (1 - f) mean u of the theorem as printed: only its order means
    something. Rank agreement is Kendall's tau, 1 for the same order and -1 for the reverse.

    Returns None with fewer than two such runs.

    Args:
        runs: those that it is a forecast of (`theory_check.select_forecast`).
        theory: the summary of the theory table, with its `path`.
    """
    advice = _read_advice(theory)
    constant = _select_constant(runs)
    has_scale = bool((constant[constant["lambda"] == 1]["reward_margins_low"] > 0).any())
    scale = _measure_scale(constant)
    rows = []
    for run in constant.to_dict("records"):
        predicted = _predict(theory, advice, float(run["lambda"]), scale)
        if predicted is not None:
            rows.append(
                {
                    "label": run["label"],
                    "lambda": float(run["lambda"]),
                    **predicted,
                    "measured_chosen": float(run["chosen_displacement"]),
                    "measured_accuracy": float(run["reward_accuracy"]),
                }
            )
    if len({row["lambda"] for row in rows}) < 2:
        return None
    agreement = {
        name: _rank_agreement([row[f"predicted_{name}"] for row in rows], [row[f"measured_{name}"] for row in rows])
        for name in ("chosen", "accuracy")
    }
    source = ADVICE if advice is not None else PAPER
    return {
        "source": source,
        "optimizer": (advice or {}).get("optimizer"),
        "path": theory.get("path"),
        "rows": rows,
        "rank_agreement": agreement,
        "recommended_lambda": (advice or {}).get("recommended_lambda"),
        "reason": (advice or {}).get("reason"),
        "statement": _state_theory(source, agreement, rows, advice)
        + ("" if advice is None or has_scale else f" {_NO_SCALE}"),
    }


def explain_unchecked(runs: pd.DataFrame, theory: Mapping[str, Any]) -> str:
    """Returns why `check_theory` lays nothing of this theory beside these runs, as a clause."""
    constant, advice = _select_constant(runs), _read_advice(theory)
    if constant["lambda"].nunique() < 2:
        return "fewer than two constant λ among the runs that started from the theory table's model"
    if advice is None:
        return "the theory table's summary has neither a forecast nor mean u and v"
    if math.isnan(_measure_scale(constant)):
        return "no run with λ = 1, whose margin the forecast is scaled by"
    return "fewer than two of the runs' λ are in the forecast's grid"


def _select_constant(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of a constant lambda and a measured change, the largest lambda first."""
    is_constant = runs["lambda"].notna() & runs["chosen_displacement"].notna()
    return runs[is_constant].sort_values("lambda", ascending=False)


def _measure_scale(constant: pd.DataFrame) -> float:
    """The margin that DPO gained, in nats; NaN without a DPO run."""
    dpo = constant[constant["lambda"] == 1]
    return float((dpo["reward_margins"] / dpo["beta"]).mean()) if len(dpo) else math.nan


def _read_advice(theory: Mapping[str, Any]) -> dict[str, Any] | None:
    """The advice that `theory-gap` itself showed: `summary["advice"][summary["advice_from"]]`; None without a grid."""
    advice = (theory.get("advice") or {}).get(theory.get("advice_from"))
    return advice if isinstance(advice, dict) and "1" in (advice.get("grid") or {}) else None


def _predict(
    theory: Mapping[str, Any], advice: Mapping[str, Any] | None, lambda_: float, scale: float
) -> dict[str, Any] | None:
    if advice is not None:
        cell = advice["grid"].get(f"{lambda_:g}")
        if cell is None or math.isnan(scale):
            return None
        return {
            "predicted_chosen": cell["chosen_change"]["mean"] * scale,
            "predicted_accuracy": cell["accuracy"]["value"],
        }
    u, v = (theory.get(name) or {} for name in ("u", "v"))
    if any(math.isnan(each.get("mean", math.nan)) for each in (u, v)):
        return None
    return {"predicted_chosen": (1 - lambda_) * u["mean"], "predicted_accuracy": (1 - lambda_) * v["mean"]}


def _rank_agreement(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float | None]:
    """Kendall's tau-b with its exact p-value; None where all of one side are the same."""
    result = kendalltau(predicted, measured)
    return {
        "tau": float(result.statistic) if np.isfinite(result.statistic) else None,
        "p_value": float(result.pvalue) if np.isfinite(result.pvalue) else None,
    }


def _state_theory(
    source: str,
    agreement: Mapping[str, Mapping[str, float | None]],
    rows: Sequence[Mapping[str, Any]],
    advice: Mapping[str, Any] | None,
) -> str:
    """The sign first: runs may be in the right order where each of them moved the other way than was said.

    The printed theorem has no sign to check: its change is that against DPO.
    """

    def say(name: str) -> str:
        tau = agreement[name]["tau"]
        return "not defined" if tau is None else f"{tau:+.2f}"

    best = (advice or {}).get("recommended_lambda")
    named = f" It recommended lambda {best:g} before any training." if best is not None else ""
    n = len(rows)
    n_signs = sum(row["predicted_chosen"] * row["measured_chosen"] > 0 for row in rows)
    signs = f"The forecast has the sign of the measured change of log pi(chosen) in {n_signs} of {count(n, 'run')}. "
    signs = "" if advice is None else signs
    if n < _MIN_RANKED:
        return signs + (
            f"{count(n, 'lambda is', 'lambdas are')} too few to say whether theory puts them in the right order.{named}"
        )
    return signs + (
        f"{source} orders {count(n, 'run')} by chosen log-likelihood with a rank agreement of {say('chosen')}, and by "
        f"reward accuracy with {say('accuracy')} (Kendall's tau: 1 means the measured order, -1 its reverse).{named}"
    )


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
