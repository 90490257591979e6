"""The files of one model's values of pairs: written in parts, read together, and merged when there are many.

A part is a Parquet file with a row per pair. Its name is a hash of the folder, the keys and the values, so that values
that were moved to another pair or another model are noticed like any other damage. It is never changed once it has its
name, so any number of processes may read and write at the same time without locks. Merging writes the merged file first
and only then removes what it holds; a reader whose file has gone meanwhile lists the folder again.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpotool.runs.parquet import read_arrow, write_arrow
from dpotool.runs.schemas import column, find_range

Values = dict[str, tuple[float, ...]]
"""Key of a pair -> its values, in the order of `columns_of` the folder."""

PRODUCTS = "products"
"""Part of the name of a folder of gradient products; the other folders are of log-probabilities."""
_LOGPS = ("chosen_logps", "rejected_logps")
MERGE_FROM = 16
"""Parts from which on they are merged. Each merge rewrites all of them: rarely enough to cost nothing."""
_RANGES = {
    name: find_range(column(name, pa.float64(), "", ""))
    for name in ("chosen_grad_sq_norm", "rejected_grad_sq_norm", *_LOGPS)
}
_PART_NAME = re.compile(r"[0-9a-f]{16}([0-9a-f]{16})?\.parquet")
"""With 16 digits, which followed from the keys alone, of earlier releases: their pairs are computed again."""
_OLD = 16
_ATTEMPTS = 5


class UnreadablePartError(Exception):
    """A part is damaged, or its content does not match its name."""


def columns_of(folder: Path) -> tuple[str, ...]:
    """Returns what the parts in a folder say of each pair: log-probabilities (nats), or gradient products (nats²)."""
    if PRODUCTS in folder.name.split("-"):
        return ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm", *_LOGPS)
    return _LOGPS


def _make_schema(folder: Path) -> pa.Schema:
    return pa.schema([("key", pa.string()), *((name, pa.float64()) for name in columns_of(folder))])


def list_parts(folder: Path) -> list[Path]:
    """Returns the parts in a folder by name; other files there are none of dpotool's."""
    return sorted(path for path in folder.glob("*.parquet") if _PART_NAME.fullmatch(path.name))


def read_part(path: Path) -> list[tuple[Any, ...]]:
    """Returns the rows of a part: the key, then the values, each of which may be None.

    Raises:
        UnreadablePartError: it cannot be read, has other columns than its folder's parts have, or holds what cannot be.
        FileNotFoundError: it is gone.
    """
    if len(path.stem) == _OLD:
        raise UnreadablePartError("an earlier release wrote it, under a name that does not guard its values")
    try:
        table = read_arrow(path)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise UnreadablePartError(str(error).strip().partition("\n")[0] or type(error).__name__) from None
    schema = _make_schema(path.parent)
    if [_plain(field) for field in table.schema] != [_plain(field) for field in schema]:
        raise UnreadablePartError(f"it holds {', '.join(f'{field.name}: {field.type}' for field in table.schema)}")
    if table.column("key").null_count:
        raise UnreadablePartError("it has a row without a key")
    columns = {name: table.column(name).to_pylist() for name in schema.names}
    for name, (low, high) in _RANGES.items():
        odd = [number for number in columns.get(name, ()) if number is not None and not low <= number <= high]
        if any(math.isfinite(number) for number in odd):
            raise UnreadablePartError(f"it holds {odd[0]:g} for {name}")
    numbers = [table.column(name).to_numpy() for name in schema.names[1:]]
    if path.name != name_part(path.parent, [columns["key"], *numbers]):
        raise UnreadablePartError("its values are not those that were written for these pairs of this model")
    return list(zip(*columns.values(), strict=True))


def _plain(field: pa.Field) -> tuple[str, pa.DataType]:
    """A column's name and type; pandas wrote texts as large ones."""
    return field.name, pa.string() if pa.types.is_large_string(field.type) else field.type


@dataclass(frozen=True, slots=True)
class Parts:
    """The values in all parts of a folder together."""

    values: Values
    sources: tuple[Path, ...]
    """The parts that were read."""
    unreadable: Mapping[Path, str]
    """Those that could not be, and why; they only cost their pairs a second computation."""


def read_parts(folder: Path) -> Parts:
    """Returns all values of a folder; where a pair is in several parts, those of the last one by name."""
    for _ in range(_ATTEMPTS):
        try:
            return _read_listed(list_parts(folder))
        except FileNotFoundError:  # merged by another process since it was listed
            continue
        except PermissionError:  # somebody else's folder: nothing is known then, and nothing will be kept
            break
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
        values |= {key: tuple(numbers) for key, *numbers in rows if _are_finite(numbers)}
    return Parts(values, tuple(path for path in parts if path not in unreadable), unreadable)


def write_part(folder: Path, values: Mapping[str, tuple[float, ...]]) -> str | None:
    """Adds values to a folder; those that are not finite are left out, and will be computed again.

    Returns:
        The name of the part; None where nothing was left to write.

    Raises:
        DpotoolError: the folder cannot be written.
    """
    finite = {key: values[key] for key in sorted(values) if _are_finite(values[key])}
    if not finite:
        return None
    columns = [list(finite), *map(list, zip(*finite.values(), strict=True))]
    name = name_part(folder, columns)
    write_arrow(pa.table(columns, schema=_make_schema(folder)), folder / name)
    return name


def name_part(folder: Path, columns: Sequence[Any]) -> str:
    """Returns the file name of a part with these columns, the keys first: the same values never make two files."""
    keys, *numbers = columns
    content = hashlib.sha256("\n".join([folder.name, *keys]).encode())
    for each in numbers:
        content.update(np.asarray(each, dtype="<f8").tobytes())
    return content.hexdigest()[:32] + ".parquet"


def merge_parts(folder: Path, at_least: int = MERGE_FROM) -> None:
    """Merges the parts of a folder into one where there are many; safe beside readers, writers and other merges.

    Raises:
        DpotoolError: the folder cannot be written; nothing is removed then.
    """
    if len(list_parts(folder)) < at_least:
        return
    parts = read_parts(folder)
    merged = write_part(folder, parts.values)
    for path in parts.sources:
        if path.name != merged:
            with suppress(OSError):  # another merge was faster, or a reader holds it open; it only repeats what is kept
                path.unlink(missing_ok=True)


def _are_finite(numbers: Sequence[float | None]) -> bool:
    return all(number is not None and math.isfinite(number) for number in numbers)
