"""Writes some rows of a source into a new file, unchanged: in their order, in their format, with every field.

Lines of JSON are copied byte for byte; CSV keeps its header, Parquet its columns and types. A saved dataset or one from
the hub becomes Parquet, the built-in pairs JSON lines. Row numbers are those of `pair_id`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dpotool.data.files import COMPRESSED, _is_by_lines, _open, _read_whole, inner_suffix
from dpotool.data.origins import Origin, _find_shards, open_origin
from dpotool.data.pair_sets import load_rows
from dpotool.data.pairs import PreferenceData
from dpotool.data.splits import choose_split, choose_split_to_cut
from dpotool.errors import DpotoolError, expand_home
from dpotool.settings.shared import DataSettings

if TYPE_CHECKING:
    import pyarrow as pa


class RawRows(Protocol):
    """All rows of a split."""

    def encode(self, rows: Sequence[int]) -> bytes:
        """Returns a file with these rows, uncompressed."""

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Returns these rows as JSON would have them."""


@dataclass(frozen=True, slots=True)
class Rewriter:
    """Writes rows of one split."""

    suffix: str
    """Of the file that `encode` makes: .jsonl, .csv, .jsonl.gz ..."""
    rows: RawRows

    def encode(self, rows: Sequence[int], suffix: str | None = None) -> bytes:
        """Returns the content of a file with these rows, in the format of the source or as JSON lines.

        Raises:
            DpotoolError: the user asks for another format.
        """
        if suffix in (None, self.suffix):
            return _compress(self.rows.encode(rows), self.suffix)
        if suffix != ".jsonl":
            raise DpotoolError(
                "cannot be written in that format", expected=f"{self.suffix} or .jsonl", got=str(suffix or "no ending")
            )
        return _to_lines(self.rows.read(rows))


def open_rewriter(settings: DataSettings, default_split: str, data: PreferenceData, seed: int) -> Rewriter:
    """Opens the split that the settings name, as `load_preferences` does, for writing rows of it.

    Args:
        data: what was read of it before; rows are told by their numbers, so it has to be the same still.

    Raises:
        DpotoolError: there is no such source or split, it cannot be read, or it was changed since.
    """
    rewriter = _open_rewriter(settings, default_split)
    again = load_rows(replace(settings, skip_invalid=True), seed=seed, default_split=default_split)
    if again.source.fingerprint != data.source.fingerprint:
        raise DpotoolError(
            "was changed while it was worked on",
            where=settings.data,
            remedy="Run the command again when nothing else writes to it",
        )
    return rewriter


def _open_rewriter(settings: DataSettings, default_split: str) -> Rewriter:
    origin = open_origin(settings.data)
    names = list(origin.splits)
    if settings.test_fraction is None:
        split = choose_split(names, settings.split, default_split, settings.data)
    else:
        split = choose_split_to_cut(names, settings.data)
    path = expand_home(settings.data)
    if path.is_file():
        return _from_files([path])
    shards = _find_shards(path) if path.is_dir() else {}
    if split in shards:
        return _from_files(shards[split])
    if settings.data.startswith("builtin:"):
        return Rewriter(".jsonl", _Values([row.value or {} for row in origin.splits[split]()], is_list=False))
    return Rewriter(".parquet", _Arrow(_load_dataset(origin, path, split)))


def _load_dataset(origin: Origin, path: Path, split: str) -> pa.Table:
    """All columns of a saved dataset or of one from the hub."""
    import datasets

    if path.is_dir():
        loaded = datasets.load_from_disk(str(path))
        loaded = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    else:
        name, _, config = origin.data.partition(":")
        loaded = datasets.load_dataset(name, config or None, split=split)
    return loaded.with_format("arrow")[:]


def _from_files(files: Sequence[Path]) -> Rewriter:
    suffix = inner_suffix(files[0])
    packed = files[0].suffix.lower() if files[0].suffix.lower() in COMPRESSED else ""
    if suffix == ".csv":
        return Rewriter(suffix + packed, _Csv.open(files))
    if suffix == ".parquet":
        return Rewriter(suffix, _Arrow.open(files))
    parts = [_open_json(file) for file in files]
    if all(isinstance(part, _Lines) for part in parts):
        return Rewriter(suffix + packed, _Lines([line for part in parts for line in part.lines]))  # type: ignore[union-attr]
    values = [value for part in parts for value in part.read(range(len(part)))]
    return Rewriter(suffix + packed, _Values(values, is_list=True))


def _open_json(path: Path) -> _Lines | _Values:
    """Takes a file apart as `files` does: by lines, or as one JSON value."""
    with _open(path) as file:
        found = None if _is_by_lines(file) else _read_whole(path, file)
        if found is not None:
            return _Values([row.value for row in found], is_list=True)
        lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return _Lines([line.rstrip(b"\r") for line in lines if line.strip()])


@dataclass(frozen=True, slots=True)
class _Lines:
    lines: list[bytes]

    def __len__(self) -> int:
        return len(self.lines)

    def encode(self, rows: Sequence[int]) -> bytes:
        return b"".join(self.lines[row] + b"\n" for row in rows)

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [json.loads(self.lines[row]) for row in rows]


@dataclass(frozen=True, slots=True)
class _Values:
    values: list[Any]
    is_list: bool
    """Written as one JSON list; else one value a line."""

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, rows: Sequence[int]) -> bytes:
        if not self.is_list:
            return _to_lines(self.read(rows))
        return (json.dumps(self.read(rows), ensure_ascii=False, indent=1) + "\n").encode()

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [self.values[row] for row in rows]


@dataclass(frozen=True, slots=True)
class _Csv:
    header: list[str]
    cells: list[list[str]]

    @classmethod
    def open(cls, files: Sequence[Path]) -> _Csv:
        header: list[str] = []
        cells: list[list[str]] = []
        for path in files:
            with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as file:
                lines = [line for line in csv.reader(file, strict=True) if line]
            if header and lines[0] != header:
                raise DpotoolError("has other columns than the files before it", where=str(path))
            header = lines[0]
            cells += lines[1:]
        return cls(header, cells)

    def encode(self, rows: Sequence[int]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.cells[row] for row in rows)
        return text.getvalue().encode()

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        return [dict(zip(self.header, self.cells[row], strict=False)) for row in rows]


@dataclass(frozen=True, slots=True)
class _Arrow:
    table: pa.Table

    @classmethod
    def open(cls, files: Sequence[Path]) -> _Arrow:
        import pyarrow as pa
        import pyarrow.parquet as pq

        opened = (pq.ParquetFile(pa.BufferReader(_open(path).read())) for path in files)
        return cls(pa.concat_tables([file.read(use_threads=False) for file in opened]))

    def encode(self, rows: Sequence[int]) -> bytes:
        import pyarrow.parquet as pq

        file = io.BytesIO()
        pq.write_table(self.table.take(list(rows)), file)
        return file.getvalue()

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        taken: list[dict[str, Any]] = self.table.take(list(rows)).to_pylist()
        return taken


def _to_lines(values: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False, default=str) + "\n" for value in values).encode()


def _compress(data: bytes, suffix: str) -> bytes:
    kind = COMPRESSED.get(Path(f"x{suffix}").suffix)
    if kind is None:
        return data
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as stream:
        stream.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed
