"""Rows from files, and broken files by their line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from dpotool.data.files import SourceRow, read_file
from dpotool.errors import DpotoolError

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "é\u2028天", "rejected": "f"}]


def _write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _values(path: Path) -> list[object]:
    return [row.value for row in read_file(path)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n  \n"])
def test_json_lines(tmp_path: Path, suffix: str, bom: bytes, newline: bytes) -> None:
    """A byte order mark, CRLF and blank lines are fine; a line separator inside a string ends no line."""
    lines = newline.join(json.dumps(row, ensure_ascii=False).encode() for row in ROWS)
    assert _values(_write(tmp_path / f"pairs{suffix}", bom + lines)) == ROWS


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_json_list(tmp_path: Path, bom: bytes) -> None:
    assert _values(_write(tmp_path / "pairs.json", bom + b"\n " + json.dumps(ROWS, indent=2).encode())) == ROWS


def test_parquet_keeps_lists_of_messages_and_leaves_other_columns_out(tmp_path: Path) -> None:
    chat = {"chosen": [{"role": "user", "content": "Hi"}], "rejected": [{"role": "user", "content": "Ho"}]}
    pd.DataFrame([chat | {"source": "unused"}]).to_parquet(tmp_path / "pairs.parquet")
    assert _values(tmp_path / "pairs.parquet") == [chat]


def test_csv_with_quoted_newlines_numbers_and_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    frame = pd.DataFrame(
        {"chosen": ["a\nb", json.dumps(messages)], "rejected": ["5", "[{not json}]"], "score_chosen": [2.5, None]}
    )
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    rows = list(read_file(tmp_path / "pairs.csv"))
    assert rows == [
        SourceRow(0, {"chosen": "a\nb", "rejected": "5", "score_chosen": 2.5}, None, 2),
        SourceRow(1, {"chosen": messages, "rejected": "[{not json}]", "score_chosen": None}, None, 4),
    ]


def test_a_csv_cell_may_be_longer_than_the_csv_modules_own_limit(tmp_path: Path) -> None:
    path = _write(tmp_path / "pairs.csv", f"chosen,rejected\n{'a' * 200_000},b\n")
    assert len(_values(path)[0]["chosen"]) == 200_000  # type: ignore[index]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"chosen": "a"', "broken JSON: Expecting ',' delimiter at column 15"),
        (b"not json", "broken JSON: Expecting value at column 1"),
        (b'["a", "b"]', "row is a list; expected an object with named fields"),
        (b"3", "row is a number; expected an object with named fields"),
        (b'{"chosen": "\xff"}', "broken text: not UTF-8 at byte 13 of the line"),
        (b"[" * 100_000, "broken JSON: nested too deeply"),
    ],
)
def test_a_broken_line_is_a_row_with_a_problem(tmp_path: Path, line: bytes, problem: str) -> None:
    """The rows around it keep their numbers: it counts as a row, the blank line before it does not."""
    path = _write(tmp_path / "pairs.jsonl", b'{"a": 1}\n\n' + line + b'\n{"a": 2}\n')
    rows = list(read_file(path))
    assert [(row.row_id, row.line) for row in rows] == [(0, 1), (1, 3), (2, 4)]
    assert rows[1].problem == problem
    assert rows[1].value is None
    assert rows[1].locate("pairs.jsonl") == "pairs.jsonl:3"


def test_a_row_without_a_line_is_located_by_its_number() -> None:
    assert SourceRow(16, {}).locate("pairs.parquet") == "pairs.parquet: row 16"


def test_a_csv_row_with_too_many_cells_has_a_problem(tmp_path: Path) -> None:
    rows = list(read_file(_write(tmp_path / "pairs.csv", "chosen,rejected\na,b\n\nc,d,e\n")))
    assert [(row.line, row.problem) for row in rows] == [
        (2, None),
        (4, "row has more cells than the header has columns"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b'[{"a": 1},\n {"a": ]', r"p.json:2: broken JSON: Expecting value at column 8"),
        ("p.json", b'["\xff"]', r"p.json: not UTF-8 at byte 3"),
        ("p.csv", b'chosen,rejected\n"a,b\n', r"p.csv:2: broken CSV: unexpected end of data"),
        ("p.csv", b"chosen,rejected\n\xff,b\n", r"p.csv: not UTF-8"),
        ("p.parquet", b"no parquet", r"p.parquet: cannot be read as Parquet"),
        (
            "p.txt",
            b"",
            r"cannot tell the format of '.*p.txt' from its name; expected one of .jsonl, .json,",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DpotoolError, match=message):
        list(read_file(_write(tmp_path / name, content)))


def test_an_unreadable_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DpotoolError, match=r"gone.jsonl: cannot be read: No such file"):
        list(read_file(tmp_path / "gone.jsonl"))
