"""Rows from one file (.jsonl, .json, .parquet, .csv, also compressed), each with its number and, if it has one, line.

A row that cannot be read is yielded with its problem instead of a value, so that the caller decides whether it is an
error or a row left out; a file that cannot be read at all is a `DpotoolError`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from dpotool.data.columns import KNOWN_COLUMNS, TEXT_COLUMNS, select_columns
from dpotool.data.rows import QUESTION_COLUMNS, describe_type
from dpotool.errors import DpotoolError
from dpotool.hub import refuse_pointer

_BATCH_ROWS = 1024
_CHECK = "Check the path and who may read it"
_UTF8 = "Save it as UTF-8"
_AGAIN = "Write or download it again"
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""Suffix of a compressed file -> what pyarrow calls it."""
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""What Windows writes at the beginning of a file that is not UTF-8."""
_MAX_CSV_CELL = 1 << 30  # the csv module's own limit of 128 KiB is shorter than a long conversation


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row of the source: its value, or the problem because of which it cannot be read."""

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
    """Yields the rows of a .jsonl, .json, .parquet or .csv file in file order, also one that is compressed.

    Raises:
        DpotoolError: another suffix, or a file that cannot be read as what its suffix says.
    """
    reader = _READERS.get(inner_suffix(path))
    if reader is None:
        raise DpotoolError(
            f"cannot tell the format of '{path}' from its name",
            expected=f"one of {', '.join(SUFFIXES)}, also with {', '.join(COMPRESSED)} behind",
            got=f"'{path.suffix}'",
            remedy="Rename it after what it is, or convert it to JSONL",
        )
    try:
        refuse_pointer(path)
        yield from reader(path)
    except OSError as error:
        raise DpotoolError(f"cannot be read: {error.strerror or error}", where=str(path), remedy=_CHECK) from error


def inner_suffix(path: Path) -> str:
    """Returns '.jsonl' for pairs.jsonl and for pairs.jsonl.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def _open(path: Path) -> BinaryIO:
    """Opens a file for reading bytes of UTF-8, whatever it was compressed with, and UTF-16 too where it says so."""
    kind = COMPRESSED.get(path.suffix.lower())
    if kind is None:
        file: BinaryIO = path.open("rb")
    else:
        import pyarrow as pa

        file = io.BytesIO(pa.input_stream(path.open("rb"), compression=kind).read())
    start = file.read(4)
    file.seek(0)
    encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if encoding is None:
        return file
    with file:
        try:
            return io.BytesIO(file.read().decode(encoding).encode())
        except UnicodeError as error:
            raise DpotoolError(f"begins like {encoding} and is not", where=str(path), remedy=_UTF8) from error


def _read_jsonl(path: Path) -> Iterator[SourceRow]:
    """One JSON object a line; or what is often found under this name and under .json: a list, an object of them."""
    with _open(path) as file:
        rows = None if _is_by_lines(file) else _read_whole(path, file)
        if rows is not None:
            yield from rows
            return
        row_id = 0
        for line, raw in enumerate(file, start=1):  # bytes: only a line feed ends a line, never U+2028 in a string
            content = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
            if not content.strip():
                continue
            value, problem = _parse_row(content.rstrip(b"\r\n"))
            yield SourceRow(row_id, value, problem, line)
            row_id += 1


def _is_by_lines(file: BinaryIO) -> bool:
    """Tells whether the first line that is not blank is a row, and rewinds the file."""
    try:
        first = next((line for line in file if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").strip()
    finally:
        file.seek(0)
    value, _ = _parse_row(first)
    return value is not None and {"chosen", "rejected"} <= value.keys() and not _are_columns(value)


def _read_whole(path: Path, file: BinaryIO) -> list[SourceRow] | None:
    """Reads a file that is one JSON value, or several over many lines; None where it is rather broken lines."""
    raw = file.read()
    file.seek(0)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.lstrip().startswith(b"["):
            raise DpotoolError(f"not UTF-8 at byte {error.start + 1}", where=str(path), remedy=_UTF8) from error
        return None
    try:
        values = _split_values(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith("[") or _parse_row(text.lstrip().splitlines()[0].encode())[1] is None:
            return None
        raise _broken_list(path, error) from error
    found: list[Any] | None
    if len(values) == 1 and isinstance(values[0], dict):
        found = _find_rows(values[0], str(path))
    elif len(values) == 1 and isinstance(values[0], list):
        found = values[0]
    else:
        found = values if all(isinstance(value, dict) for value in values) and text.count("\n") > len(values) else None
        if not found or all(_parse_row(line.encode())[1] is None for line in text.splitlines() if line.strip()):
            return None  # a row on each line after all
    return [SourceRow(row_id, *_check_object(value)) for row_id, value in enumerate(found)]


def _split_values(text: str) -> list[Any]:
    """Returns the JSON values that follow each other in a text."""
    decoder, values, position = json.JSONDecoder(), [], 0
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        value, position = decoder.raw_decode(text, position)
        values.append(value)
        if len(values) > 1 and not isinstance(value, dict):
            raise ValueError("no rows")
    return values


def _find_rows(value: dict[str, Any], data: str) -> list[Any]:
    """Returns the rows of one JSON object: itself, its columns (as pandas writes them), or the list inside it."""
    if _are_columns(value):
        names = list(value)
        columns = [list(column.values()) if isinstance(column, dict) else column for column in value.values()]
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    lists = {
        name: item for name, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)
    }
    if {"chosen", "rejected"} & value.keys() or not lists:
        return [value]
    if len(lists) > 1:
        raise DpotoolError(
            f"holds rows under several names: {', '.join(lists)}",
            where=data,
            remedy="Write each list into its own file",
        )
    return next(iter(lists.values()))


def _are_columns(value: dict[str, Any]) -> bool:
    """Tells whether an object consists of columns: lists of equal length, or objects with the same row numbers."""
    cells = [value.get(name) for name in ("chosen", "rejected")]
    if all(isinstance(cell, dict) and cell and all(key.isdigit() for key in cell) for cell in cells):
        return len({tuple(cell) if isinstance(cell, dict) else None for cell in value.values()}) == 1
    if not all(
        isinstance(cell, list) and cell and all(isinstance(item, str | list) for item in cell) for cell in cells
    ):
        return False
    return len({len(cell) if isinstance(cell, list) else None for cell in value.values()}) == 1


def _broken_list(path: Path, error: Exception) -> DpotoolError:
    place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
    detail = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
    return DpotoolError(
        f"broken JSON: {detail}",
        where=f"{path}{place}",
        remedy="Mend it; a file with a row on each line is named .jsonl",
    )


def _parse_row(raw: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"broken text: not UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        return None, f"broken JSON: {error.msg} at column {error.colno}"
    except ValueError:  # Python reads no integer of more than some thousand digits
        return None, "broken JSON: a number of too many digits"
    except RecursionError:
        return None, "broken JSON: nested too deeply"
    return _check_object(value)


def _check_object(value: object) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, dict):
        return value, None
    return None, f"row is {describe_type(value)}; expected an object with named fields"


def _read_csv(path: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(_MAX_CSV_CELL)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as file:
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
    if name in KNOWN_COLUMNS and name not in (*TEXT_COLUMNS, *QUESTION_COLUMNS):
        return _parse_scalar(cell)
    if cell.startswith("[{") and cell.endswith("}]"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _parse_scalar(cell: str) -> Any:
    if not cell.strip():
        return None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(
            path.absolute() if path.suffix.lower() == ".parquet" else pa.BufferReader(_open(path).read())
        ) as file:
            columns = select_columns(file.schema_arrow.names)
            batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for row_id, value in enumerate(rows):
                yield SourceRow(row_id, value)
    except pa.ArrowInvalid as error:
        raise DpotoolError(f"cannot be read as Parquet: {error}", where=str(path), remedy=_AGAIN) from error


_READERS: dict[str, Callable[[Path], Iterator[SourceRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
SUFFIXES = tuple(_READERS)
