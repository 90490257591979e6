"""Summaries: sealed, checked by a schema for each kind of table, and read back as they were made."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import need_summary, read_score_summary, read_summary, summary_path, write_summary

MEAN = {"mean": 1.0, "ci_low": 0.0, "ci_high": 2.0}
VALUE = {"value": 0.5, "ci_low": 0.0, "ci_high": 1.0}
SIDE = {
    "displacement": MEAN,
    "spans": dict.fromkeys(("shared_prefix", "shared", "divergent", "eos"), MEAN | {"share_of_tokens": 0.25}),
    "positions": [{"first": 0, "last": 3, "part": 1.0}],
    "worst": {"share": 0.5, "n_for_half": 2.0},
}
FIT = {"same_sign": VALUE, "correlation": VALUE, "slope": VALUE}
SOUND: dict[str, dict[str, Any]] = {
    "score": {"n": 3, "n_excluded": {}, "chosen_logps": MEAN, "noise_floor": {"logps": {"largest": 0.1}}},
    "theory": {
        "n": 3,
        "gaps": {"0.5": {"paper": {"g1": MEAN}}},
        "advice": {"sgd": {"grid": {"1": dict.fromkeys(("chosen_change", "rejected_change", "margin_change"), MEAN)
                                         | {"accuracy": VALUE}}}},
        "verification": {"n": 2, "dtype": "float64", "optimizers": {"sgd": {"0.5": {"g1": {
            "predicted": 1.0, "slope": 2.0, "ladder": [{"rate": 1e-3, "measured": 1.0, "residual": 0.0}]}}}}},
    },
    "diagnosis": {
        "n": 3, "chosen": SIDE, "rejected": SIDE,
        "mass": {"shares": {"other_side": 0.1, "ref_top": 0.2, "eos": 0.3, "elsewhere": 0.4}},
        "risks": {"ches": {"called": "CHES", "rank_correlation": VALUE, "given": None}},
    },
    "prediction": {"n": 3, "chosen": FIT, "rejected": FIT, "distance": 0.1, "at": "middle"},
    "judgment": {
        "n": 3, "label": "a", "baseline": "b", "judge": "j", "wins": 1, "ties": 1, "losses": 1, "without_outcome": 0,
        "win_rate": {"ties_half": VALUE}, "p_value": 1.0, "power": {"questions_needed": None},
    },
}  # fmt: skip


def walk(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for path in [path] if path] + [found for key, each in items for found in walk(each, (*path, key))]


def test_the_summary_beside_a_table_is_read_if_there_is_one(tmp_path: Path) -> None:
    table = RunFolder(tmp_path).table_path("theory", "demo", "test")
    table.parent.mkdir(parents=True)
    assert read_summary(table, "theory") is None
    with pytest.raises(DpotoolError, match=r"demo-test.summary.json: is missing\. Write it again"):
        need_summary(table, "theory")
    write_summary(table, {"n": 3})
    assert read_summary(table, "theory") == need_summary(table, "theory") == {"n": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"n": 3', "cannot be read as a summary"),
        ("[1]", "is not what it has to be; expected a mapping"),
        ("[" * 100_000, "cannot be read as a summary"),
    ],
)
def test_a_broken_summary_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "demo-test.parquet"
    summary_path(table).write_text(text)

    with pytest.raises(DpotoolError, match=rf"demo-test.summary.json: {message}"):
        read_summary(table, "score")


@pytest.mark.parametrize("change", [{"n": [1]}, {"chosen_logps": {"mean": "x"}}, {"more": 1}, {"seal": None}])
def test_a_summary_that_somebody_changed_is_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    table = tmp_path / "demo-test.parquet"
    table.touch()
    write_summary(table, SOUND["score"])
    assert read_summary(table, "score") == read_score_summary(table) == SOUND["score"]
    path = summary_path(table)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DpotoolError, match=r"or was changed since\. Write it again"):
        read_summary(table, "score")
    assert read_score_summary(table) is None, "it is made anew from the table"


@pytest.mark.parametrize("kind", SOUND)
def test_what_no_command_writes_is_refused_wherever_it_lies(tmp_path: Path, kind: str) -> None:
    """As another program may write it that knows the seal: each entry in turn is a list with a text in it."""
    table = tmp_path / "t.parquet"
    table.touch()
    write_summary(table, SOUND[kind])
    assert read_summary(table, kind) == SOUND[kind]
    for path in walk(SOUND[kind]):
        changed = copy.deepcopy(SOUND[kind])
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = ["x"]
        write_summary(table, changed)
        with pytest.raises(DpotoolError, match=re.escape("t.summary.json: ")):
            read_summary(table, kind)
        assert kind != "score" or read_score_summary(table) is None


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("score", {"chosen_logps": MEAN | {"mean": {}}}, "chosen_logps.mean: is not what it has to be"),
        ("score", {"noise_floor": {"logps": {"a": 1}}}, "noise_floor.logps: lacks largest"),
        ("diagnosis", {"risks": {"ches": {"rank_correlation": [1]}}}, "risks"),
        ("theory", {"gaps": {"half": {}}}, "gaps: is not what it has to be; expected text matching regex"),
        ("judgment", {"win_rate": ""}, "win_rate: is not what it has to be; expected a mapping, got ''"),
        ("judgment", {"losses": -1}, "losses: is not what it has to be; expected a whole number >= 0, got -1"),
        ("judgment", {"losses": 10**30}, "losses: is not what it has to be; expected a whole number <= 1e+12, got 100"),
        ("prediction", {"at": "nowhere"}, "at: "),
        ("rating", {"caveat": {}}, "caveat"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, kind: str, change: dict[str, Any], says: str) -> None:
    table = tmp_path / "t.parquet"
    write_summary(table, SOUND.get(kind, {"n": 3}) | change)
    with pytest.raises(DpotoolError, match=re.escape(f"t.summary.json: {says}")):
        read_summary(table, kind)


def test_ends_that_are_not_known_are_read_back_as_they_were_made(tmp_path: Path) -> None:
    """One pair has a mean and no interval: NaN, for which JSON has only null."""
    table = tmp_path / "t.parquet"
    write_summary(table, {"n": 1, "gaps": {"0.5": {"paper": {"g1": MEAN | {"ci_low": math.nan}}}}, "u": None})
    found = read_summary(table, "theory")
    assert found is not None and found["u"] is None
    assert math.isnan(found["gaps"]["0.5"]["paper"]["g1"]["ci_low"])
    assert json.loads(summary_path(table).read_text())["gaps"]["0.5"]["paper"]["g1"]["ci_low"] is None


def test_the_seal_of_what_was_found_does_not_depend_on_what_the_store_had(tmp_path: Path) -> None:
    seals = []
    for layouts in ({"stored": 3}, {"shared": 3}):
        write_summary(tmp_path / "t.parquet", {"n": 3, "layouts": layouts})
        seals.append(json.loads((tmp_path / "t.summary.json").read_text())["seal"])
    assert seals[0] == seals[1]
