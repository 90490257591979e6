"""What a table says of itself: read with its types, refused in one line, and enough to make the table again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic_frames import make_score_frame

from dpotool.cli.config_file import read_config
from dpotool.errors import DpotoolError
from dpotool.runs.about import Fingerprints, Rows, ScoreAbout, read_about
from dpotool.runs.tables import SCORE_SCHEMA, write_table
from dpotool.settings.scoring import ScoreConfig

SETTINGS = {"data": "a.jsonl", "split": "test", "limit": 20, "seed": 7, "dtype": "float64", "truncation": "exclude"}


def write(folder: Path, about: dict[str, Any]) -> Path:
    return write_table(make_score_frame(3), folder / "scores" / "a-test.parquet", SCORE_SCHEMA, about)


def test_what_is_written_is_read_back_and_leads_to_the_rows(tmp_path: Path) -> None:
    about = ScoreAbout(
        command="score", settings=SETTINGS, model="m", beta=0.5, dtype="float64", fingerprints=Fingerprints(data="ab")
    )
    found = read_about(write(tmp_path, about.to_dict()), ScoreAbout)
    assert found == about
    assert found.rows == Rows(data="a.jsonl", split="test", limit=20, seed=7)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_table_tells_the_command_that_made_it_to_make_it_again(tmp_path: Path, ending: str) -> None:
    about = ScoreAbout(command="score", settings=SETTINGS).to_dict()
    table = write_table(make_score_frame(3), tmp_path / f"a.{ending}", SCORE_SCHEMA, about)
    assert read_config(table, ScoreConfig, command="score", others={"score": ScoreConfig}) == SETTINGS


def test_rows_of_older_tables_are_settings_too(tmp_path: Path) -> None:
    rows = {"data": "a.jsonl", "limit": None, "seed": 7}
    found = read_about(write(tmp_path, {"split": "test", "beta": 0.2, "reference": "r", "rows": rows}), ScoreAbout)
    assert found.rows == Rows(data="a.jsonl", seed=7)
    assert found.settings is not None and (found.settings["beta"], found.settings["reference"]) == (0.2, "r")


def test_a_table_without_settings_cannot_be_made_again_from_itself(tmp_path: Path) -> None:
    table = write(tmp_path, {"data": "a"})
    assert read_about(table, ScoreAbout).rows is None
    with pytest.raises(DpotoolError, match="does not record the settings it was made with"):
        read_config(table, ScoreConfig, command="score")


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"beta": -1.0}, "its metadata.beta: is not what it has to be; expected a number > 0, got -1.0"),
        ({"model": ["m"]}, "its metadata.model: is not what it has to be; expected text or nothing, got"),
        ({"fingerprints": "ab"}, "its metadata.fingerprints: is not what it has to be; expected a mapping, got 'ab'"),
        ({"settings": {"limit": "many"}}, "settings.limit: is not what it has to be; expected a whole number"),
        ({"beta": "\ud800"}, "its metadata: holds text that is no Unicode; got"),
        ({"settings": {"odd": {"a": 1}}}, "settings.odd: is not what it has to be; expected"),
    ],
)
def test_what_is_not_what_it_has_to_be_is_one_line(tmp_path: Path, about: dict[str, Any], says: str) -> None:
    table = write(tmp_path, about)
    with pytest.raises(DpotoolError) as caught:
        read_about(table, ScoreAbout)
    assert str(caught.value).startswith(f"{table}: {says}")
    assert str(caught.value).endswith("Write it again with the command that made it")
