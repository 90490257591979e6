"""The files of one model's log-probabilities: written in parts, read together, merged when they grow many.

A part is a Parquet file with a row per pair and is never changed once it has its name, so any number of processes may
read and write at the same time without locks. Merging writes the merged file first and only then removes what it holds;
a reader that loses a file under its hands looks again.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpotool.runs.atomic import atomic_path

Values = dict[str, tuple[float, float]]
"""Key of a pair -> log-probabilities of its chosen and rejected completion (nats)."""

SCHEMA = pa.schema([("key", pa.string()), ("chosen_logps", pa.float64()), ("rejected_logps", pa.float64())])
MERGE_FROM = 16
"""Parts from which on they are merged. Each merge rewrites all of them: rarely enough to cost nothing."""
_PART_NAME = re.compile(r"[0-9a-f]{16}\.parquet")
_ATTEMPTS = 5


class UnreadablePartError(Exception):
    """A part is damaged, or holds something else than its name says."""


def list_parts(folder: Path) -> list[Path]:
    """Returns the parts in a folder by name; other files there are none of dpotool's."""
    return sorted(path for path in folder.glob("*.parquet") if _PART_NAME.fullmatch(path.name))


def read_part(path: Path) -> list[tuple[str, float, float]]:
    """Returns the rows of a part.

    Raises:
        UnreadablePartError: it cannot be read, or its columns are not SCHEMA's.
        FileNotFoundError: it is gone.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise UnreadablePartError(str(error).strip().partition("\n")[0] or type(error).__name__) from None
    if [_plain(field) for field in table.schema] != [_plain(field) for field in SCHEMA]:
        raise UnreadablePartError(f"it holds {', '.join(f'{field.name}: {field.type}' for field in table.schema)}")
    return list(zip(*(table.column(name).to_pylist() for name in SCHEMA.names), strict=True))


def _plain(field: pa.Field) -> tuple[str, pa.DataType]:
    """A column's name and type; pandas wrote texts as large ones."""
    return field.name, pa.string() if pa.types.is_large_string(field.type) else field.type


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder's parts hold together."""

    values: Values
    sources: tuple[Path, ...]
    """The parts that were read."""
    unreadable: Mapping[Path, str]
    """Those that could not be, and why; they only cost their pairs a second computation."""


def read_parts(folder: Path) -> Parts:
    """Returns all values of a folder; where a pair is in several parts, those of the last one by name."""
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # merged by another process since it was listed
            return _read_listed(list_parts(folder))
    return Parts({}, (), {})


def _read_listed(parts: Sequence[Path]) -> Parts:
    values: Values = {}
    unreadable: dict[Path, str] = {}
    for path in parts:
        try:
            rows = read_part(path)
        except UnreadablePartError as error:
            unreadable[path] = str(error)
            continue
        values |= {key: (chosen, rejected) for key, chosen, rejected in rows if _is_finite(chosen, rejected)}
    return Parts(values, tuple(path for path in parts if path not in unreadable), unreadable)


def write_part(folder: Path, values: Mapping[str, tuple[float, float]]) -> None:
    """Adds values to a folder; those that are not finite are left out, and will be computed again.

    Raises:
        DpotoolError: the folder cannot be written.
    """
    kept = {key: pair for key, pair in values.items() if _is_finite(*pair)}
    if not kept:
        return
    columns = [list(kept), [chosen for chosen, _ in kept.values()], [rejected for _, rejected in kept.values()]]
    with atomic_path(folder / name_part(kept)) as path:
        pq.write_table(pa.table(columns, schema=SCHEMA), path)


def name_part(values: Mapping[str, tuple[float, float]]) -> str:
    """Returns the file name of a part, which follows from its keys: the same pairs never make two files."""
    return hashlib.sha256("".join(sorted(values)).encode()).hexdigest()[:16] + ".parquet"


def merge_parts(folder: Path, at_least: int = MERGE_FROM) -> None:
    """Merges the parts of a folder into one where there are many; safe beside readers, writers and other merges.

    Raises:
        DpotoolError: the folder cannot be written; nothing is removed then.
    """
    if len(list_parts(folder)) < at_least:
        return
    parts = read_parts(folder)
    write_part(folder, parts.values)
    for path in parts.sources:
        if path.name != name_part(parts.values):
            with suppress(OSError):  # another merge was faster, or a reader holds it open; it only repeats what is kept
                path.unlink(missing_ok=True)


def _is_finite(chosen: float | None, rejected: float | None) -> bool:
    return chosen is not None and rejected is not None and math.isfinite(chosen) and math.isfinite(rejected)
