"""Tables on disk: Parquet, CSV or JSON lines, with units, definitions and the caller's metadata, checked when read.

Parquet holds its metadata itself. CSV and JSON lines cannot: `<table>.schema.json` beside them does.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.runs.atomic import atomic_path, to_json_plain, write_json
from dpotool.runs.checked import check_value, parse_json, read_json
from dpotool.runs.parquet import WRITTEN_KEY, find_time, read_arrow, read_parquet_schema, sidecar, write_arrow
from dpotool.runs.schemas import (
    METADATA_KEY,
    SCHEMAS,
    SCORE_SCHEMA,
    TABLE_KEY,
    THEORY_SCHEMA,
    TOKEN_SCHEMA,
    check_rows,
    is_optional,
)
from dpotool.runs.summaries import read_summary
from dpotool.wording import count

__all__ = ["SCORE_SCHEMA", "THEORY_SCHEMA", "TOKEN_SCHEMA", "read_raw_metadata", "read_table", "write_table"]

_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl"}
FORMATS = tuple(_SUFFIXES.values())
_REWRITE = "Write it again with the command that made it"


def write_table(
    frame: pd.DataFrame,
    path: str | Path,
    schema: pa.Schema,
    metadata: Mapping[str, Any] | None = None,
    *,
    format: str | None = None,  # noqa: A002 (the option's own name)
) -> Path:
    """Writes `frame` as `schema` says, atomically; returns the path.

    Columns that `frame` lacks are null; NaN is null. Column order is the schema's.

    Args:
        metadata: about the whole table (model, reference, data, split, beta, gamma, fingerprints); `read_metadata`
            returns it.
        format: parquet, csv or jsonl; by default what the path's ending says.

    Raises DpotoolError for an unknown format or a folder that cannot be written, ValueError for a frame that does not
    fit the schema.
    """
    path = Path(path)
    format = _resolve_format(path, format)  # noqa: A001
    table = _to_arrow(frame, schema, metadata or {})
    written = find_time(path.parent, path.name)
    if format == "parquet":
        write_arrow(table.replace_schema_metadata({**table.schema.metadata, WRITTEN_KEY: str(written)}), path)
        return path
    write_json(sidecar(path), _describe_schema(table.schema) | {"n_rows": len(table), "written": written})
    with atomic_path(path) as temporary:
        if format == "csv":
            frame = table.to_pandas(types_mapper=_pandas_type)
            # a lone carriage return inside a token is a line end to readers unless the field is quoted
            frame.to_csv(temporary, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(_to_json_line(row) for row in table.to_pylist())
    return path


def read_table(path: str | Path, schema: pa.Schema | None = None) -> pd.DataFrame:
    """Reads a table and checks its columns; integer columns that may be null come as Int64, numbers as float64.

    Args:
        schema: what the table must be; by default the kind it says it is, or the kind its columns are of. Columns
            beyond it are read where the table says what they are.

    Raises DpotoolError when the file is missing, unreadable, half-written or not such a table.
    """
    path = Path(path)
    if not path.is_file():
        raise DpotoolError("no such table", where=str(path), remedy="Run `dpotool score` or `dpotool theory-gap` first")
    try:
        raw = _read_raw(path)
        _check_whole(raw, path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DpotoolError(f"cannot be read as a table ({error})", where=str(path), remedy=_REWRITE) from error
    schema = schema or _recognise(path, raw)
    missing = [field.name for field in schema if field.name not in raw.columns and not is_optional(field)]
    if missing:
        kind = (schema.metadata or {})[TABLE_KEY].decode()
        raise DpotoolError(
            f"not a {kind} table, it lacks {', '.join(missing)}",
            where=str(path),
            got=f"columns {', '.join(map(str, raw.columns)) or 'none'}",
            remedy=_REWRITE,
        )
    try:
        extended = _extend(schema, path)
        known = [name for name in extended.names if name in raw.columns]
        frame = _to_arrow(raw[known], extended, {}).to_pandas(types_mapper=_pandas_type)
        check_rows(frame, extended)
    except ValueError as error:
        raise DpotoolError(str(error), where=str(path), remedy=_REWRITE) from error
    return frame


def _check_whole(raw: pd.DataFrame, path: Path) -> None:
    """Raises ValueError for a column that is there twice, or for other rows than were written."""
    twice = raw.columns[raw.columns.duplicated()]
    if len(twice):
        raise ValueError(f"column {twice[0]!r} is there twice")
    if path.suffix == ".parquet":
        return
    n_rows = _read_sidecar(sidecar(path)).n_rows if sidecar(path).is_file() else None
    if n_rows not in (None, len(raw)):
        raise ValueError(f"it has {count(len(raw), 'row')}, and {n_rows} were written")
    n_pairs = _count_pairs(path, is_score="status" in raw.columns) if n_rows is None else 0
    if len(raw) < n_pairs:
        raise ValueError(f"it has {count(len(raw), 'row')}, and its summary counts {n_pairs}")
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            raise ValueError("it breaks off in its last line")


def _count_pairs(path: Path, *, is_score: bool) -> int:
    """Returns how many rows the summary beside a table is of, at least; 0 where none can be read."""
    try:
        summary = read_summary(path, "score" if is_score else "") or {}
    except DpotoolError:
        return 0
    return int(summary.get("n", 0)) + (sum(summary["n_excluded"].values()) if is_score and summary else 0)


class _Sidecar(msgspec.Struct):
    """The file beside a table whose format has only values."""

    metadata: dict[str, Any]
    columns: list[dict[str, str]]
    table: str = ""
    n_rows: int | None = None


def read_raw_metadata(path: str | Path) -> dict[str, Any]:
    """Returns the metadata of a table ({} if its `.schema.json` is missing); raises DpotoolError if it is unreadable.

    `runs.about` checks it.
    """
    path = Path(path)
    try:
        if _resolve_format(path, None) == "parquet":
            found = parse_json((read_parquet_schema(path).metadata or {}).get(METADATA_KEY, b"{}"))
            return check_value(found, dict[str, Any], where=f"{path}: its metadata", remedy=_REWRITE)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DpotoolError(f"its metadata cannot be read ({error})", where=str(path), remedy=_REWRITE) from error
    return _read_sidecar(sidecar(path)).metadata if sidecar(path).is_file() else {}


def _read_sidecar(path: Path) -> _Sidecar:
    return read_json(path, _Sidecar, what="the description of a table", remedy=_REWRITE)


def _extend(schema: pa.Schema, path: Path) -> pa.Schema:
    """Adds the columns that the table says it has besides, with unit and definition: those of further measures."""
    if path.suffix == ".parquet":
        described = list(read_parquet_schema(path))
    elif sidecar(path).is_file():
        columns = [{"name": "", "type": "", **about} for about in _read_sidecar(sidecar(path)).columns]
        described = [
            pa.field(about.pop("name"), pa.type_for_alias(about.pop("type")), metadata=about) for about in columns
        ]
    else:
        return schema
    for field in described:
        if field.name not in schema.names and b"definition" in (field.metadata or {}):
            schema = schema.append(field)
    return schema


def _resolve_format(path: Path, format: str | None) -> str:  # noqa: A002
    name = format or _SUFFIXES.get(path.suffix.lower(), path.suffix)
    if name not in FORMATS:
        raise DpotoolError(f"unknown table format {name!r}", where=str(path), remedy=suggest_nearest(name, FORMATS))
    return name


def _describe_schema(schema: pa.Schema) -> dict[str, Any]:
    """The schema as JSON: kind of table, definition, metadata, and unit and definition of every column."""
    about = schema.metadata
    columns = [
        {"name": field.name, "type": str(field.type)} | {k.decode(): v.decode() for k, v in field.metadata.items()}
        for field in schema
    ]
    return {
        "table": about[TABLE_KEY].decode(),
        "definition": about[b"definition"].decode(),
        "metadata": json.loads(about[METADATA_KEY]),
        "columns": columns,
    }


def _to_arrow(frame: pd.DataFrame, schema: pa.Schema, metadata: Mapping[str, Any]) -> pa.Table:
    unknown = [str(name) for name in frame.columns if name not in schema.names]
    if unknown:
        raise ValueError(f"columns the schema does not have: {', '.join(unknown)}")
    columns = [_to_arrow_column(frame, field) for field in schema]
    about = {**(schema.metadata or {}), METADATA_KEY: json.dumps(to_json_plain(metadata)).encode()}
    return pa.table(columns, schema=schema.with_metadata(about))


def _to_arrow_column(frame: pd.DataFrame, field: pa.Field) -> pa.Array:
    if field.name not in frame.columns:
        column = pa.nulls(len(frame), field.type)
    elif frame[field.name].dtype.kind in "mM":  # which Arrow would take for numbers
        raise ValueError(f"column {field.name!r} holds times, not {field.type}")
    else:
        try:
            column = pa.Array.from_pandas(frame[field.name], type=field.type)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise ValueError(f"column {field.name!r} does not hold {field.type} ({error})") from error
    if not field.nullable and column.null_count:
        raise ValueError(f"column {field.name!r} is null in {count(column.null_count, 'row')}")
    return column


def _pandas_type(type_: pa.DataType) -> Any:
    """Int64 for integers, so that a null does not turn a count into a float; everything else as pandas likes."""
    return pd.Int64Dtype() if type_ == pa.int64() else None


def _to_json_line(row: dict[str, Any]) -> str:
    """One row as strict JSON; an infinity (band_high) is the string "inf"."""
    plain = {name: str(v) if isinstance(v, float) and math.isinf(v) else v for name, v in row.items()}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n"


def _read_raw(path: Path) -> pd.DataFrame:
    format_ = _resolve_format(path, None)
    if format_ == "parquet":
        return read_arrow(path).to_pandas(types_mapper=_pandas_type)
    if format_ == "csv":
        return _read_csv(path).replace("", None).apply(_numbers_from_text)
    with path.open(encoding="utf-8") as file:
        rows = [_read_json_line(line, number) for number, line in enumerate(file, start=1) if line.strip()]
    return pd.DataFrame(rows).apply(_numbers_from_text)


def _read_csv(path: Path) -> pd.DataFrame:
    """All fields as text. Not by pandas, which pads a row that was cut short with nulls."""
    with path.open(encoding="utf-8", newline="") as file:
        try:
            lines = list(csv.reader(file, strict=True))
        except csv.Error as error:
            raise ValueError(str(error)) from error
    if not lines:
        raise ValueError("it is empty")
    header, *rows = lines
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} fields, the header {len(header)}")
    return pd.DataFrame(rows, columns=header, dtype=object)


def _read_json_line(line: str, number: int) -> dict[str, Any]:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not a JSON object")
    return row


def _numbers_from_text(column: pd.Series) -> pd.Series:
    """Numbers as float64, "inf" among them, None as NaN; columns of text do not change."""
    if column.name in _TEXT_COLUMNS:
        return column
    odd = [value for value in column if isinstance(value, bool | list | dict)]
    if odd:
        raise ValueError(f"column {column.name!r} holds {odd[0]!r}, which is no number")
    try:
        return pd.to_numeric(column).astype("float64")
    except OverflowError as error:
        raise ValueError(f"column {column.name!r} holds a number that is too large") from error


def _recognise(path: Path, raw: pd.DataFrame) -> pa.Schema:
    """The schema a table says it has, else the one whose columns it has most of."""
    named = ""
    if path.suffix == ".parquet":
        named = (read_parquet_schema(path).metadata or {}).get(TABLE_KEY, b"").decode(errors="replace")
    elif sidecar(path).is_file():
        named = _read_sidecar(sidecar(path)).table
    return SCHEMAS[named] if named in SCHEMAS else max(SCHEMAS.values(), key=lambda each: _rank_likeness(each, raw))


def _rank_likeness(schema: pa.Schema, raw: pd.DataFrame) -> tuple[float, int]:
    """The share of a schema's columns that are there, and how many: one kind of token table has those of the other."""
    n_shared = len(set(schema.names) & set(raw.columns))
    return n_shared / len(schema.names), n_shared


_TEXT_COLUMNS = {field.name for schema in SCHEMAS.values() for field in schema if field.type == pa.string()}
