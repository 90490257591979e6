"""Files of one JSON object a line, plain or gzipped: read with line numbers, appended to so that no crash loses one."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpotool.errors import DpotoolError
from dpotool.runs.atomic import to_json_plain, write_text, writing_to
from dpotool.runs.checked import parse_json, read_bytes

Row = dict[str, Any]


def read_lines(path: str | Path) -> list[Row]:
    """Returns the objects of a .jsonl or .jsonl.gz file in order.

    Raises:
        DpotoolError: there is no such file, it cannot be read, or a line is no JSON object; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise DpotoolError("no such file", where=str(path))
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = parse_object(line)
            if row is None:
                raise DpotoolError("is no JSON object", where=f"{path}:{number}", got=line[:60])
            rows.append(row)
    return rows


def read_sound_lines(path: Path) -> tuple[list[Row], int]:
    """Returns the objects of a file that this program appends to, and how many lines a crash had torn."""
    if not path.is_file():
        return [], 0
    parsed = [parse_object(line) for line in read_text(path).split("\n") if line.strip()]
    return [row for row in parsed if row is not None], sum(row is None for row in parsed)


def parse_object(line: str) -> Row | None:
    """Returns the JSON object of a line, or None."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows and forces them to disk; a line torn by an earlier crash is closed off first."""
    text = "".join(_to_line(row) for row in rows).encode()
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Writes a whole file, atomically."""
    return write_text(path, "".join(_to_line(row) for row in rows))


def _to_line(row: Mapping[str, Any]) -> str:
    return json.dumps(to_json_plain(row), ensure_ascii=False, allow_nan=False) + "\n"


def read_text(path: Path) -> str:
    """Returns the text of a file, unpacked. Raises DpotoolError when it cannot be read, or is no UTF-8."""
    try:
        raw = read_bytes(path)
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DpotoolError(f"cannot be read ({error})", where=str(path)) from error
