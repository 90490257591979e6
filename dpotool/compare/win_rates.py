"""Computes win rates from a judgment table: the two orders are merged, and what is left out is counted.

A question has an outcome if it has a verdict in every order requested; if the two orders disagree it is a tie.
Identical answers are a tie without asking.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import permutation_test, rankdata

from dpotool.runs.folder import RunFolder
from dpotool.runs.parquet import read_time
from dpotool.runs.summaries import read_summary
from dpotool.runs.tables import read_table
from dpotool.stats.intervals import Interval, format_interval
from dpotool.stats.length_control import control_length
from dpotool.stats.paired import ALPHA, adjust_holm
from dpotool.stats.power import count_questions_needed, find_detectable_rate
from dpotool.stats.win_rates import estimate_order_effect, estimate_win_rate
from dpotool.wording import count

OUTCOMES = {"win": 1.0, "tie": 0.0, "loss": -1.0}
RATES = {"ties_half": "ties as half", "without_ties": "without ties", "ties_as_wins": "ties as wins"}
"""The three win rates, by the names they have wherever they are printed."""
ALIKE = ("judge", "prompt", "baseline", "questions")
"""What the summaries of two judgments have in common if their win rates can stand side by side."""
_KEYS = ["question_id", "sample"]


def summarize_judgments(table: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Returns counts, the three win rates, sign test, order effect, length control and power of one model's verdicts.

    Args:
        table: of JUDGMENT_SCHEMA.
    """
    merged = merge_judgments(table)
    known = merged[merged["outcome"].notna()]
    clusters = _clusters(known)
    rate = estimate_win_rate(known["outcome"], clusters=clusters, seed=seed)
    decided = rate.wins + rate.losses
    tie_share = rate.ties / rate.n if rate.n else math.nan
    lengths = known[["model_length", "baseline_length"]]
    has_lengths = bool(len(known)) and bool(lengths.notna().all(axis=None))
    control = (
        control_length(
            known["outcome"],
            lengths["model_length"].astype(float),
            lengths["baseline_length"].astype(float),
            clusters=clusters,
            seed=seed,
        ).to_dict()
        if has_lengths
        else None
    )
    return {
        "n": rate.n,
        "n_questions": len(merged),
        "wins": rate.wins,
        "ties": rate.ties,
        "losses": rate.losses,
        "without_outcome": len(merged) - rate.n,
        "verdicts": count_status(table),
        "identical": int((merged["status"] == "identical").sum()),
        "doubtful": int(table.get("is_doubtful", pd.Series(dtype="int64")).fillna(0).sum()),
        "win_rate": {name: getattr(rate, name).to_dict() for name in RATES},
        "p_value": rate.p_value,
        "test": rate.test,
        "order_effect": summarize_order(table, seed=seed),
        "length_control": control,
        "power": {
            "questions_needed": count_questions_needed(rate.wins / decided if decided else math.nan, tie_share),
            "detectable": find_detectable_rate(rate.n, tie_share),
        },
    }


def merge_judgments(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per question and sample: `outcome` (+1, 0, -1, NaN for none), `status`, lengths, category.

    `status` is 'judged', 'identical', 'orders differ', or why there is no outcome.
    """
    rows = table.assign(value=table["verdict"].map(OUTCOMES).astype(float))
    groups = rows.groupby(_KEYS, sort=False)
    merged = groups[["model_length", "baseline_length", "category", "prompt_id", "status"]].first()
    low, high, n_missing = groups["value"].min(), groups["value"].max(), groups["value"].agg(lambda v: v.isna().sum())
    merged["outcome"] = low.where(low == high, 0.0).where(n_missing == 0)
    merged.loc[(low != high) & (n_missing == 0), "status"] = "orders differ"
    missing = rows[rows["value"].isna()].drop_duplicates(_KEYS).set_index(_KEYS)["status"]
    merged.loc[missing.index, "status"] = missing
    return merged.reset_index()


def count_status(table: pd.DataFrame) -> dict[str, int]:
    """Returns how many verdicts were requested, and the number of each status."""
    counts = table["status"].value_counts()
    return {"asked": int((table["status"] != "identical").sum()), **{str(k): int(v) for k, v in counts.items()}}


def summarize_order(table: pd.DataFrame, *, seed: int = 0) -> dict[str, Any] | None:
    """Returns agreement of the orders and position bias; None without verdicts in both orders."""
    judged = table[(table["status"] == "judged") & table["order"].isin(["first", "second"])]
    values = judged.assign(value=judged["verdict"].map(OUTCOMES).astype(float))
    sides = values.pivot_table(index=_KEYS, columns="order", values="value", aggfunc="first")
    if not {"first", "second"} <= set(sides.columns):
        return None
    sides = sides.dropna().reset_index()
    prompts = table.drop_duplicates(_KEYS)[[*_KEYS, "prompt_id"]]
    clusters = _clusters(sides.merge(prompts, on=_KEYS, how="left"))
    effect = estimate_order_effect(sides["first"], sides["second"], clusters=clusters, seed=seed)
    return {
        "n": effect.n,
        "agreement": effect.agreement.to_dict("mean"),
        "position_bias": effect.position_bias.to_dict(),
    }


def note_adjusted(summaries: Sequence[dict[str, Any]]) -> None:
    """Adds `p_adjusted` (Holm, over all models judged against the baseline) and their number to each summary."""
    adjusted = adjust_holm([summary["p_value"] for summary in summaries])
    for summary, p in zip(summaries, adjusted, strict=True):
        summary["p_adjusted"], summary["n_compared"] = p, len(summaries)


def state_result(label: str, baseline: str, summary: Mapping[str, Any]) -> str:
    """Returns one sentence: whether the model's answers are preferred, how often, and how sure that is."""
    rate = Interval.read(summary["win_rate"]["ties_half"])
    if not summary["n"] or math.isnan(rate.ci_low):
        return f"Nothing can be said about {label} against {baseline}: no question has a verdict."
    p = summary.get("p_adjusted", summary["p_value"])
    numbers = (
        f"win rate {100 * rate.value:.1f} % [{100 * rate.ci_low:.1f}, {100 * rate.ci_high:.1f}], counting a tie as half"
    )
    if p < ALPHA:
        better = label if rate.value > 0.5 else baseline
        return f"{better} answers better than {baseline if better is label else label} by this judge: {numbers}."
    needed = summary["power"]["questions_needed"]  # infinite, or null in a file, where there is no difference
    more = (
        ""
        if needed is None or not math.isfinite(needed)
        else f". To confirm a difference of this size takes about {needed:,.0f} questions"
    )
    return f"{label} and {baseline} cannot be told apart on {count(summary['n'], 'question')}: {numbers}{more}."


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A run whose answers were judged."""

    folder: RunFolder
    summary: Mapping[str, Any]
    """As `summarize_judgments` makes it, with label, baseline, judge, caveat and is_proxy."""

    @property
    def label(self) -> str:
        return str(self.summary["label"])

    @property
    def rate(self) -> Mapping[str, float]:
        """The win rate with ties as half: value, ci_low, ci_high."""
        rate: Mapping[str, float] = self.summary["win_rate"]["ties_half"]
        return rate


def read_judged(folders: Sequence[RunFolder]) -> list[JudgedRun]:
    """Returns the runs that were judged, in their order, all by one judge against one baseline on the same questions.

    Which: those of the newest judgment among all of the runs.
    """
    return [JudgedRun(folder, summary) for folder, summary in find_alike(folders, "judgment")]


def find_alike(folders: Sequence[RunFolder], kind: str) -> list[tuple[RunFolder, dict[str, Any]]]:
    """Returns the summaries of judgments or ratings that can stand beside the newest of them, in the folders' order.

    They are by the same judge with the same prompt, against the same baseline, on the same questions; of a model that
    occurs twice in a folder the newest.
    """
    return [(folder, summary) for folder, _, summary in _list_alike(folders, kind)]


def _list_alike(folders: Sequence[RunFolder], kind: str) -> list[tuple[RunFolder, Path, dict[str, Any]]]:
    tables = [(read_time(path), folder, path) for folder in folders for path in folder.list_tables(kind)]
    read = [(time, folder, path, summary) for time, folder, path in tables if (summary := read_summary(path, kind))]
    if not read:
        return []
    read.sort(key=lambda each: each[0])
    wanted = [read[-1][3].get(name) for name in ALIKE]
    newest = {
        (folders.index(folder), str(summary["label"])): (folder, path, summary)
        for _, folder, path, summary in read
        if [summary.get(name) for name in ALIKE] == wanted
    }
    return [newest[place] for place in sorted(newest, key=lambda place: place[0])]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What one judge said of several models' answers, question by question."""

    baseline: str
    """Label of the model that all of them were judged against."""
    questions: str | None
    """What the questions are called: of pairs, their data and split."""
    by_folder: Mapping[Path, pd.Series]
    """Run folder -> 1 for a win over the baseline, 0.5 for a tie, 0 for a loss, by question id; a mean over samples."""


def read_outcomes(folders: Sequence[RunFolder]) -> Outcomes | None:
    """Returns the outcomes behind the judgments that `find_alike` chooses; None where nothing was judged."""
    found = _list_alike(folders, "judgment")
    if not found:
        return None
    merged = {folder.path: merge_judgments(read_table(path)).dropna(subset="outcome") for folder, path, _ in found}
    by_folder = {path: (1 + rows.groupby("question_id")["outcome"].mean()) / 2 for path, rows in merged.items()}
    about = found[0][2]
    return Outcomes(str(about["baseline"]), about.get("questions"), by_folder)


def relate_displacement(judged: Sequence[JudgedRun], runs: pd.DataFrame) -> dict[str, Any] | None:
    """Does displacement predict the win rate? Spearman's rank correlation over runs, with its permutation p-value.

    Args:
        runs: a row per scored run with `path` and `chosen_displacement`, the mean change of log pi(chosen), nats.

    Returns None for fewer than four judged runs, where no ranking could be told from chance.
    """
    displacement = dict(zip(map(str, runs["path"]), runs["chosen_displacement"].astype(float), strict=True))
    known = [(displacement.get(str(run.folder.path), math.nan), run.rate["value"]) for run in judged]
    known = [pair for pair in known if all(map(math.isfinite, pair))]
    if len(known) < 4:
        return None
    x, y = (rankdata(column) for column in zip(*known, strict=True))
    if len(set(x)) == 1 or len(set(y)) == 1:
        return None
    test = permutation_test(
        (x,), lambda ranks: float(np.corrcoef(ranks, y)[0, 1]), permutation_type="pairings", n_resamples=9_999, rng=0
    )
    return {"rank_correlation": float(test.statistic), "p_value": float(test.pvalue), "n": len(known)}


def describe_judged(judged: Sequence[JudgedRun], relation: Mapping[str, Any] | None) -> list[str]:
    """Returns a sentence on each judged run, and one on displacement and win rate."""
    if not judged:
        return []
    first = judged[0].summary
    proxy = " (a proxy, not a judgment of quality)" if first.get("is_proxy") else ""
    rates = [f"{run.label} {format_interval(run.rate, '.1f', 100)}" for run in judged]
    lines = [
        f"Win rate over {first['baseline']} by {first['judge']}{proxy}, in %, counting a tie as half: "
        f"{'; '.join(rates)}."
    ]
    if relation:
        lines.append(
            f"Displacement and win rate over {count(relation['n'], 'run')}: rank correlation "
            f"{relation['rank_correlation']:+.2f}, p = {relation['p_value']:.2g}; "
            "runs of one sweep are not a sample of models."
        )
    return lines


def _clusters(rows: pd.DataFrame) -> np.ndarray | None:
    """Questions drawn together: those of one prompt, and all samples of a question."""
    if rows["prompt_id"].notna().all() and len(rows):
        return rows["prompt_id"].to_numpy(dtype=str)
    return rows["question_id"].to_numpy(dtype=str)
