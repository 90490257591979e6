from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dpotool.runs.plain import as_cell, to_json_plain, to_plain


class Truncation(enum.Enum):
    TRIM = "trim-prompt"


class Name(str):
    __slots__ = ()


@dataclass
class Settings:
    output: Path
    lambdas: tuple[float, ...]
    truncation: Truncation


def test_dataclasses_paths_enums_and_numpy_become_plain():
    value = {"settings": Settings(Path("runs/a"), (0.5, 1.0), Truncation.TRIM), 3: np.float32(0.5), "n": np.arange(2)}

    assert to_plain(value) == {
        "settings": {"output": "runs/a", "lambdas": [0.5, 1.0], "truncation": "trim-prompt"},
        "3": 0.5,
        "n": [0, 1],
    }


def test_a_subclass_of_str_becomes_str_itself():
    assert type(to_plain(Name("x"))) is str


def test_a_bool_stays_a_bool():
    assert to_plain(np.bool_(True)) is True


def test_an_object_that_cannot_be_written_is_refused_not_shown_as_its_repr():
    with pytest.raises(TypeError, match="cannot write a value of type object"):
        to_plain({"a": object()})


def test_json_has_no_nan_or_infinity():
    assert to_json_plain({"a": [float("nan"), np.inf, 1.0]}) == {"a": [None, None, 1.0]}


@pytest.mark.parametrize("text", ["=cmd|calc!A1", "+1+1", "-2+3", "@sum(1)", "\t=1"])
def test_no_text_in_a_csv_is_a_formula(text):
    assert as_cell(text) == f"'{text}"
    assert [as_cell(value) for value in ("a=b", -2.5, None, "")] == ["a=b", -2.5, None, ""]
