"""Which theory table is a forecast of which runs: `compare`, `report` and pictures lay no other beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dpotool.results.runs import RunFolder, read_summary
from dpotool.results.tables import read_metadata


def find_theory(folders: Sequence[RunFolder], runs: pd.DataFrame) -> Path | None:
    """Returns the first folder's newest table of `theory-gap` that is a forecast of any of these runs.

    None where there is none with a summary. Raises DpotoolError when a table or summary cannot be read.

    Args:
        runs: runs table (`results.comparison`).
    """
    for folder in folders:
        for table in folder.list_theory():
            if len(select_forecast(read_metadata(table), runs)) and read_summary(table) is not None:
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
    if not (model and start and Path(str(start)).resolve() == Path(str(model)).resolve()):
        return False
    parts = RunFolder(Path(run["path"])).read_manifest()["data"].values()
    names = {run["data"], *(part.get("name") for part in parts if isinstance(part, Mapping))}
    return about.get("data") in names
