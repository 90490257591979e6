"""The commands that make score tables again, against what `dpotool score` does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpotool.report.repeat import rescore_foreign, rescore_trained

OWN = {"data": "own.jsonl", "limit": None, "test_fraction": 0.1, "seed": 7, "split_seed": 7, "skip_invalid": False}
TRAINED: dict[str, Any] = {
    "data": "own.jsonl", "split": "train", "limit": 900, "eval_data": "own.jsonl", "eval_split": "test",
    "eval_limit": None, "test_fraction": 0.1, "seed": 7, "split_seed": None, "skip_invalid": False, "max_length": 512,
    "model": "sft", "reference": None, "beta": 0.5,
}  # fmt: skip
ABOUT = {"data": "own", "split": "test", "beta": 0.5, "reference": "sft", "max_length": 512}
HUB = {"data": "a.jsonl", "limit": None, "test_fraction": None, "seed": 42, "split_seed": None, "skip_invalid": False}


@pytest.mark.parametrize(
    ("rows", "about", "flags"),
    [
        ({}, {}, ""),
        ({}, {"split": "train"}, "--split train"),
        ({}, {"max_length": 64}, "--max-length 64"),
        ({"limit": 50, "seed": 8}, {"beta": 0.1, "reference": "org/other"},
         "--limit 50 --seed 8 --beta 0.1 --reference org/other"),
        ({"data": "hh", "limit": 900, "test_fraction": None, "seed": 42, "split_seed": None, "skip_invalid": True}, {},
         "--data hh --limit 900 --split test --skip-invalid"),
        ({"test_fraction": 0.2, "split_seed": None, "seed": 42}, {},
         "--data own.jsonl --split test --test-fraction 0.2"),
    ],
)  # fmt: skip
def test_a_trained_run_is_scored_as_the_table_was(rows: dict[str, Any], about: dict[str, Any], flags: str) -> None:
    """Its own pairs untold, with what was asked of them; of other data nothing is the run's but the length."""
    words = rescore_trained({**ABOUT, "rows": OWN | rows, **about}, TRAINED, "again")
    assert " ".join(words) == f"score again {flags}".strip()


@pytest.mark.parametrize(
    ("recorded", "rows", "words"),
    [
        ({}, {}, "--config run.yaml"),
        ({}, {"data": "hh.jsonl", "limit": 20}, "--config run.yaml --data hh.jsonl --limit 20 --split all"),
        ({"limit": 5}, {"data": "hh.jsonl"}, "--data hh.jsonl --split all --max-length 512 --reference sft"),
    ],
)
def test_a_foreign_model_is_scored_as_the_table_was(recorded: dict[str, Any], rows: dict[str, Any], words: str) -> None:
    """run.yaml is of the first scoring; a limit that it has, and this table not, no flag takes back."""
    config = {**HUB, "model": "org/m", "split": None, "beta": None, "reference": "sft", "max_length": 512, **recorded}
    about = {**ABOUT, "data": "a", "split": "all", "beta": 0.1, "rows": HUB | rows}
    assert " ".join(rescore_foreign(about, config, Path("run.yaml"), "o")) == f"score org/m {words} --output o"


def test_a_table_that_does_not_say_which_rows_is_of_the_models_own() -> None:
    assert rescore_trained(ABOUT | {"beta": 0.1}, TRAINED, "again") == ["score", "again", "--beta", "0.1"]
