"""Converts values to what JSON and YAML can express: numpy scalars, paths, dataclasses, enums to plain Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def to_plain(value: Any) -> Any:
    """Returns `value` built of dict, list, str, bool, int, float and None alone.

    Raises TypeError for anything else: what cannot be written down must not slip into a manifest as its repr.
    """
    if isinstance(value, Enum):
        return to_plain(value.value)
    if value is None or type(value) in (str, bool, int, float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist())
    for kind in (str, int, float):  # subclasses of these, which YAML's safe writer refuses
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"cannot write a value of type {type(value).__name__}: {value!r}")


def to_json_plain(value: Any) -> Any:
    """Converts like `to_plain`, with NaN and infinities as None, as JSON has no such numbers."""
    plain = to_plain(value)
    if isinstance(plain, dict):
        return {key: to_json_plain(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [to_json_plain(item) for item in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def as_cell(value: Any) -> Any:
    """Returns a value for a CSV that people open: a text that would be run as a formula gets a ' before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def as_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a table whose texts are `as_cell`; numbers stay what they are, whole ones whole."""
    import pandas as pd  # everything that writes a file imports this module

    columns = {name: pd.Series([as_cell(value) for value in frame[name]], dtype=object) for name in frame}
    return pd.DataFrame({as_cell(name): column for name, column in columns.items()})
