"""Options know their flag, their range in words, and what lies in it."""

from __future__ import annotations

import pytest

from dpotool.errors import DpotoolError
from dpotool.losses.options import ChoiceOption, NumberOption
from dpotool.settings.fields import flag_of

SHARE = NumberOption("share", 0.0, "a share", 0.0, 0.5, includes_low=True)


@pytest.mark.parametrize(
    ("name", "flag"), [("beta", "--beta"), ("label_smoothing", "--label-smoothing"), ("lambda_", "--lambda")]
)
def test_flags(name: str, flag: str):
    assert flag_of(name) == flag


def test_numbers_in_range_come_back_as_floats():
    assert SHARE.check("0.25") == 0.25
    assert isinstance(SHARE.check(0), float)


@pytest.mark.parametrize("value", [-0.1, 0.5, float("inf"), float("nan"), "half"])
def test_other_numbers_are_refused_with_the_range(value: float | str):
    with pytest.raises(DpotoolError) as error:
        SHARE.check(value)
    assert str(error.value) == f"--share: not a usable share; expected a number, 0 <= share < 0.5, got {value}"


def test_a_range_without_bounds_takes_any_finite_number():
    anything = NumberOption("anything", 1.0, "any number")
    assert anything.check(-1e300) == -1e300
    assert anything.describe_range() == "a number"
    with pytest.raises(DpotoolError, match="--anything: not a usable anything"):
        anything.check(float("inf"))


def test_choices_are_listed():
    color = ChoiceOption("color", "red", "a colour", ("red", "green"))
    assert color.check("green") == "green"
    with pytest.raises(DpotoolError) as error:
        color.check("gren")
    assert str(error.value) == "--color: unknown color 'gren'. Did you mean 'green'? Known: green, red"
