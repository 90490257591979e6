"""First and last values of what training logged, of evaluations where there were any, else of training batches."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, slots=True)
class Ends:
    """Where one logged number began and ended."""

    steps: tuple[int, int]
    first: float
    last: float


def read_ends(rows: pd.DataFrame, name: str) -> Ends | None:
    """Returns the first and last value of `name` in the rows of a metrics.jsonl; None where it was not logged."""
    column = _column(rows, name)
    if column is None:
        return None
    known = rows.dropna(subset=[column]).sort_values("step", kind="stable")
    steps, values = known["step"].astype(int), known[column].astype(float)
    return Ends((int(steps.iloc[0]), int(steps.iloc[-1])), float(values.iloc[0]), float(values.iloc[-1]))


def describe_source(rows: pd.DataFrame) -> str:
    """Returns what the logged log-likelihoods are means over: 'evaluation pairs' or 'training batches'."""
    column = _column(rows, "logps/chosen") or ""
    return "evaluation pairs" if column.startswith("eval_") else "training batches"


def _column(rows: pd.DataFrame, name: str) -> str | None:
    if "step" not in rows:
        return None
    columns = (f"eval_{name}", name)
    return next((column for column in columns if column in rows and rows[column].notna().any()), None)
