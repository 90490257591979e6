"""Parquet files as dpotool writes them, and what tells tables apart however they were copied: order and content.

The time at which a table was written stands in it. The file system's own is lost by `git clone` and `cp -r`, and goes
backwards with the clock.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpotool.errors import refuse_endless
from dpotool.runs.atomic import atomic_path
from dpotool.runs.checked import load_json, read_bytes

WRITTEN_KEY = b"dpotool_written"
"""Schema metadata of a table: nanoseconds since 1970, later than those of all tables beside it."""


def write_arrow(table: pa.Table, path: Path) -> None:
    """Writes a table as Parquet, atomically; through bytes, for what `read_arrow` says of names.

    With checksums, as a single changed bit would otherwise be another number that looks like any other.
    """
    encoded = pa.BufferOutputStream()
    pq.write_table(table, encoded, write_page_checksum=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.getvalue())


def read_arrow(path: Path) -> pa.Table:
    """Reads a Parquet file through bytes.

    By its name pyarrow would take one with a colon for an address, and none that is no UTF-8. `read_table` reads an
    open file or a buffer in threads, one of which may outlive it; Python's end then finds it running and aborts.
    """
    source = pa.BufferReader(read_bytes(path))
    return pq.ParquetFile(source, page_checksum_verification=True).read(use_threads=False)


def read_parquet_schema(path: Path) -> pa.Schema:
    """Returns columns and metadata of a Parquet file, of which only the end is read."""
    with refuse_endless(path).open("rb") as file:
        return pq.read_schema(file)


def sidecar(table: Path) -> Path:
    """Returns the file that describes a CSV or JSON-lines table, which hold only values."""
    return table.with_name(table.name + ".schema.json")


def find_time(folder: Path, name: str) -> int:
    """Returns the time of a table that is written now: after all others in its folder, whatever the clock says."""
    others = folder.iterdir() if folder.is_dir() else ()
    kinds = (".parquet", ".csv", ".jsonl")
    times = [read_time(path) for path in others if path.suffix in kinds and path.name != name and path.is_file()]
    return max([time.time_ns(), *(each + 1 for each in times)])


def read_time(table: Path) -> int:
    """Returns when a table was written, in nanoseconds; by the file system where no release has noted it."""
    try:
        if table.suffix == ".parquet":
            return int((read_parquet_schema(table).metadata or {})[WRITTEN_KEY])
        return int(load_json(sidecar(table))["written"])
    except (OSError, ValueError, OverflowError, KeyError, TypeError, pa.ArrowException):
        return table.stat().st_mtime_ns


def hash_values(table: Path) -> str:
    """Returns 16 hex digits of a table's values: of what a summary beside it was made of.

    Raises OSError, or ArrowException, when it cannot be read.
    """
    if table.suffix != ".parquet":
        return hashlib.sha256(read_bytes(table)).hexdigest()[:16]
    content = hashlib.sha256()
    read = read_arrow(table)
    for name, column in zip(read.column_names, read.columns, strict=True):
        texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        values = repr(column.to_pylist()).encode() if texts else column.to_numpy().tobytes()
        content.update(name.encode() + values)
    return content.hexdigest()[:16]
