"""Grades of single answers (MT-Bench): means by turn and category, with intervals over questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.win_rates import find_alike
from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder
from dpotool.stats.bootstrap import bootstrap_ratios
from dpotool.stats.intervals import format_interval
from dpotool.stats.paired import ALPHA, adjust_family, compare_means


def summarize_ratings(table: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Returns the mean rating over all turns, by turn and by category, and how many answers have none.

    Args:
        table: of RATING_SCHEMA. A question's turns are drawn together; the mean is over rated answers, as FastChat's.
    """
    rated = table[table["rating"].notna()]
    groups: dict[str, pd.Series] = {"overall": pd.Series(True, index=rated.index)}
    groups |= {f"turn_{turn}": rated["turn"] == turn for turn in sorted(rated["turn"].unique())}
    categories = sorted(rated["category"].dropna().unique())
    means = {name: _mean(rated[rows], seed) for name, rows in groups.items()}
    return {
        "n": len(rated),
        "n_questions": int(rated["question_id"].nunique()),
        "without_rating": int(len(table) - len(rated)),
        "verdicts": {str(key): int(value) for key, value in table["status"].value_counts().items()},
        **means,
        "by_category": {str(name): _mean(rated[rated["category"] == name], seed) for name in categories},
    }


def _mean(rows: pd.DataFrame, seed: int) -> dict[str, float]:
    ratio = {"": (rows["rating"], np.ones(len(rows)))}
    return bootstrap_ratios(ratio, clusters=rows["question_id"].to_numpy(dtype=str), seed=seed)[""].to_dict("mean")


def read_rated(folders: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Returns the summaries of the runs whose answers were graded, all as the newest of them was.

    Raises:
        DpotoolError: there is none, with the remedy.
    """
    rated = [summary for _, summary in find_alike(folders, "rating")]
    if not rated:
        where = str(folders[0].path)
        raise DpotoolError("no ratings here", where=where, remedy=f"Run `dpotool judge {where} --bench mt-bench` first")
    return rated


def compare_ratings(tables: Mapping[str, pd.DataFrame], baseline: str, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Returns each model's difference from the baseline over the questions and turns that both have, p by Holm."""
    key = ["question_id", "turn"]
    base = tables[baseline].set_index(key)["rating"]
    found = {}
    for label, table in tables.items():
        if label == baseline:
            continue
        both = pd.concat([table.set_index(key)["rating"], base], axis=1, keys=["model", "base"]).dropna()
        clusters = both.index.get_level_values("question_id").to_numpy(dtype=str)
        found[label] = compare_means(both["model"], both["base"], clusters=clusters, seed=seed)
    return {label: each.to_dict() for label, each in zip(found, adjust_family(list(found.values())), strict=True)}


def state_ratings(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each model: whether its grades differ from the baseline's; of one alone, its mean."""
    if len(summaries) == 1:
        return [f"{summaries[0]['label']} has a mean grade of {format_interval(summaries[0]['overall'], '.2f')} of 10."]
    return [_state_difference(each) for each in summaries if each["difference"] is not None]


def _state_difference(summary: Mapping[str, Any]) -> str:
    label, baseline, found = summary["label"], summary["baseline"], summary["difference"]
    points = format_interval(found["difference"], "+.2f")
    if found["p_adjusted"] is not None and found["p_adjusted"] < ALPHA:
        way = "higher" if found["difference"]["mean"] > 0 else "lower"
        return f"{label} is graded {way} than {baseline} by this judge: {points} points of 10."
    return f"{label} and {baseline} cannot be told apart by their grades: {points} points of 10."
