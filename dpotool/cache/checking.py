"""Checks every stored value: its file can be read, it is finite, and all values of one pair agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpotool.cache.entries import SECOND, CacheEntry
from dpotool.cache.parts import UnreadablePartError, list_parts, read_part

DISAGREEMENT = {"float64": 1e-9, "float32": 1e-4}
"""Relative difference of two computations of one sum beyond which they disagree, by the type of the weights."""
_DISAGREEMENT_OF_OTHERS = 0.05
_SMALLEST_SCALE = 10.0
"""Nats; sums closer to zero are compared as if they were this large."""
_ATTEMPTS = 5


@dataclass(slots=True)
class StoreCheck:
    """What was found in one model's values."""

    path: Path
    n_files: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    """File -> why it cannot be read."""
    n_pairs: int = 0
    """A second value of a pair is no other pair."""
    n_not_finite: int = 0
    n_duplicate: int = 0
    """Rows that repeat the pair of another row."""
    n_disagreeing: int = 0
    """Of these, rows whose values differ by more than two computations of one sum can."""
    largest_difference: float = 0.0
    """Between rows of one pair, nats."""

    @property
    def is_sound(self) -> bool:
        return not (self.unreadable or self.n_not_finite or self.n_disagreeing)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path), "is_sound": self.is_sound}


def check_store(entry: CacheEntry) -> StoreCheck:
    """Reads all parts of one model's values and compares the rows of the same pair."""
    for _ in range(_ATTEMPTS):
        parts = list_parts(entry.path)
        check = StoreCheck(entry.path, n_files=len(parts))
        try:
            _check_rows(check, _read_rows(check, parts), tolerance_of(entry.types))
        except FileNotFoundError:  # merged by another process since it was listed
            continue
        return check
    return check


def tolerance_of(types: str) -> float:
    """Returns the relative difference that numeric types ('float32', 'float32-bfloat16', ...) can explain."""
    return DISAGREEMENT.get(types.removesuffix("-None"), _DISAGREEMENT_OF_OTHERS)


def is_disagreement(first: float, second: float, tolerance: float) -> bool:
    """Tells whether two values of one sum (nats) are further apart than rounding explains."""
    return abs(first - second) > tolerance * max(abs(first), abs(second), _SMALLEST_SCALE)


def _read_rows(check: StoreCheck, parts: Sequence[Path]) -> list[tuple[Any, ...]]:
    rows = []
    for path in parts:
        try:
            rows += read_part(path)
        except UnreadablePartError as error:
            check.unreadable[path.name] = str(error)
    return rows


def _check_rows(check: StoreCheck, rows: Sequence[tuple[Any, ...]], tolerance: float) -> None:
    known: dict[str, list[float]] = {}
    for key, *values in rows:
        if not all(value is not None and math.isfinite(value) for value in values):
            check.n_not_finite += 1
            continue
        if key not in known:
            known[key] = values
            continue
        check.n_duplicate += 1
        check.n_disagreeing += any(is_disagreement(*both, tolerance) for both in zip(known[key], values, strict=True))
        largest = max(abs(one - other) for one, other in zip(known[key], values, strict=True))
        check.largest_difference = max(check.largest_difference, largest)
    check.n_pairs = sum(not key.endswith(SECOND) for key in known)
