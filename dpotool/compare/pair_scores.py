"""Scores that another tool gave the pairs (CHES, similarities), and how well they rank the pairs by displacement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder
from dpotool.stats.bootstrap import read_clusters
from dpotool.stats.correlation import correlate_ranks


def read_pair_scores(path: Path) -> pd.DataFrame:
    """Returns a table that `dpotool import` made of tensors, by pair_id. Raises DpotoolError when it is none."""
    try:
        return pd.read_csv(path).set_index("pair_id")
    except (OSError, ValueError, KeyError) as error:
        raise DpotoolError(f"cannot be read ({error})", where=str(path), remedy="Import the file again") from None


def find_pair_scores(folders: Sequence[RunFolder], base: ScoredRun) -> tuple[list[tuple[str, pd.DataFrame]], list[str]]:
    """Returns by run the imported scores of the pairs that `base` was scored on, and a sentence on those of others."""
    found, problems = [], []
    data, split = str(base.data), str(base.split)
    for folder in folders:
        mine, tables = folder.table_path("imported", data, split, format="csv"), folder.list_tables("imported")
        if mine in tables:
            found.append((folder.name, read_pair_scores(mine)))
        problems += [
            f"{folder.name}: {path.name} names other pairs. If it belongs to these pairs, import it again with "
            f"--data {data} --split {split}."
            for path in tables
            if mine not in tables
        ]
    return found, problems


def relate_to_change(run: ScoredRun, scores: pd.Series, *, seed: int = 0) -> tuple[int, dict[str, float] | None]:
    """Returns over how many pairs, and Spearman's rank correlation of scores and change of log pi(chosen), in nats.

    The interval is a bootstrap over pairs, over prompts where they repeat; None without a reference, with fewer than
    3 pairs, or where all have one value.

    Args:
        scores: one number a pair, by pair_id.
    """
    both = run.scored.join(scores.rename("score"), how="inner").dropna(subset=["score"])
    if not run.is_referenced:
        return len(both), None
    change = both["chosen_displacement"].to_numpy(dtype=np.float64)
    return len(both), correlate_ranks(both["score"].to_numpy(dtype=np.float64), change, read_clusters(both), seed)
