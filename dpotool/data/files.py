"""Rows from one file (.jsonl, .json, .parquet, .csv), each with its number and, where the file has lines, its line.

A row that cannot be read is yielded with its problem instead of a value, so that the caller decides whether it is an
error or a row left out; a file that cannot be read at all is a `DpotoolError`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dpotool.data.columns import KNOWN_COLUMNS, TEXT_COLUMNS, select_columns
from dpotool.data.fields import describe_type
from dpotool.errors import DpotoolError

_BATCH_ROWS = 1024
_CHECK = "Check the path and who may read it"
_UTF8 = "Save it as UTF-8"
_AGAIN = "Write or download it again"
_MAX_CSV_CELL = 1 << 30  # the csv module's own limit of 128 KiB is shorter than a long conversation


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it stands in the source: a value, or the problem that kept it from being read."""

    row_id: int
    """Number of the row in its split, from 0; blank lines do not count, broken rows do."""
    value: dict[str, Any] | None
    problem: str | None = None
    line: int | None = None
    """Line of the file, from 1, where the format has lines."""

    def locate(self, data: str) -> str:
        """Returns 'pairs.jsonl:17', or 'pairs.parquet: row 16' for a source without lines."""
        return f"{data}:{self.line}" if self.line is not None else f"{data}: row {self.row_id}"


def read_file(path: Path) -> Iterator[SourceRow]:
    """Yields the rows of a .jsonl, .json, .parquet or .csv file in file order.

    Raises:
        DpotoolError: another suffix, or a file that cannot be read as what its suffix says.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DpotoolError(
            f"cannot tell the format of '{path}' from its name",
            expected=f"one of {', '.join(SUFFIXES)}",
            got=f"'{path.suffix}'",
            remedy="Rename it after what it is, or convert it to JSONL",
        )
    try:
        yield from reader(path)
    except OSError as error:
        raise DpotoolError(f"cannot be read: {error.strerror or error}", where=str(path), remedy=_CHECK) from error


def _read_jsonl(path: Path) -> Iterator[SourceRow]:
    row_id = 0
    with path.open("rb") as file:  # bytes: only a line feed ends a line, never U+2028 inside a string
        for line, raw in enumerate(file, start=1):
            content = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
            if not content.strip():
                continue
            value, problem = _parse_row(content.rstrip(b"\r\n"))
            yield SourceRow(row_id, value, problem, line)
            row_id += 1


def _parse_row(raw: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"broken text: not UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        return None, f"broken JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        return None, "broken JSON: nested too deeply"
    return _check_object(value)


def _check_object(value: object) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, dict):
        return value, None
    return None, f"row is {describe_type(value)}; expected an object with named fields"


def _read_json(path: Path) -> Iterator[SourceRow]:
    """A list of rows; or, as is common under this suffix too, one JSON object a line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _read_jsonl(path)
        return
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DpotoolError(f"not UTF-8 at byte {error.start + 1}", where=str(path), remedy=_UTF8) from error
    except json.JSONDecodeError as error:
        raise DpotoolError(
            f"broken JSON: {error.msg} at column {error.colno}",
            where=f"{path}:{error.lineno}",
            remedy="Mend it; a file with a row on each line is named .jsonl",
        ) from error
    for row_id, value in enumerate(rows):
        yield SourceRow(row_id, *_check_object(value))


def _read_csv(path: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(_MAX_CSV_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        done = 0
        try:
            for row_id, cells in enumerate(reader):
                done = reader.line_num
                yield _read_cells(row_id, cells, done)
        except csv.Error as error:
            where = f"{path}:{max(done, 1) + 1}"
            remedy = "Mend that row: a quote inside a cell is written twice"
            raise DpotoolError(f"broken CSV: {error}", where=where, remedy=remedy) from error
        except UnicodeDecodeError as error:
            raise DpotoolError("not UTF-8", where=str(path), remedy=_UTF8) from error


def _read_cells(row_id: int, cells: dict[str | None, Any], last_line: int) -> SourceRow:
    """A quoted cell may span lines: a row is named by its first."""
    line = last_line - sum(cell.count("\n") for cell in cells.values() if isinstance(cell, str))
    if None in cells:
        return SourceRow(row_id, None, "row has more cells than the header has columns", line)
    return SourceRow(row_id, {str(name): _read_cell(str(name), cell) for name, cell in cells.items()}, None, line)


def _read_cell(name: str, cell: str | None) -> Any:
    """CSV knows only text: scores become numbers where they are numbers, and a list of messages in JSON becomes one."""
    if cell is None:
        return None
    if name in KNOWN_COLUMNS and name not in TEXT_COLUMNS:
        return _parse_scalar(cell)
    if cell.startswith("[{") and cell.endswith("}]"):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            return cell
    return cell


def _parse_scalar(cell: str) -> Any:
    if not cell.strip():
        return None
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        return cell


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = select_columns(file.schema_arrow.names)
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for row_id, value in enumerate(rows):
                yield SourceRow(row_id, value)
    except pa.ArrowInvalid as error:
        raise DpotoolError(f"cannot be read as Parquet: {error}", where=str(path), remedy=_AGAIN) from error


_READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
SUFFIXES = tuple(_READERS)
