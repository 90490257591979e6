"""Lambda over optimiser steps, by hand and at the ends, and the values that are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpotool.errors import DpotoolError
from dpotool.losses.schedules import LambdaSchedule, describe_risk


def test_linear_increase_by_hand():
    """.75 to 1 in 4 steps: t/4 * .25 + .75 = .75, .8125, .875, .9375 during training and 1 when it is over."""
    schedule = LambdaSchedule("linear_increase", lambda_min=0.75, lambda_max=1.0)
    assert [schedule.at(step, 4) for step in range(5)] == [0.75, 0.8125, 0.875, 0.9375, 1.0]


def test_linear_decrease_by_hand():
    """1 to .5 in 4 steps: t/4 * -.5 + 1 = 1, .875, .75, .625 during training and .5 when it is over."""
    schedule = LambdaSchedule("linear_decrease", lambda_min=0.5, lambda_max=1.0)
    assert [schedule.at(step, 4) for step in range(5)] == [1.0, 0.875, 0.75, 0.625, 0.5]


def test_constant():
    assert {LambdaSchedule(lambda_=0.9).at(step, 10) for step in range(11)} == {0.9}


def test_defaults_are_filled_in_for_the_record():
    assert LambdaSchedule() == LambdaSchedule("constant", lambda_=0.95)
    assert LambdaSchedule("linear_increase") == LambdaSchedule("linear_increase", lambda_min=0.75, lambda_max=1.0)
    assert LambdaSchedule("linear_decrease").lambda_ is None


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.integers(1, 1000), st.data())
def test_increase_and_decrease_mirror_each_other_within_their_bounds(one: float, other: float, n_steps: int, data):
    low, high = sorted((one, other))
    step = data.draw(st.integers(0, n_steps))
    increase = LambdaSchedule("linear_increase", lambda_min=low, lambda_max=high).at(step, n_steps)
    decrease = LambdaSchedule("linear_decrease", lambda_min=low, lambda_max=high).at(step, n_steps)
    assert increase + decrease == pytest.approx(low + high)
    assert low - 1e-12 <= increase <= high + 1e-12


@pytest.mark.parametrize(("step", "n_steps"), [(-1, 4), (5, 4), (0, 0)])
def test_steps_outside_the_run_are_refused(step: int, n_steps: int):
    with pytest.raises(ValueError, match="expected 0 <= step <= n_steps"):
        LambdaSchedule().at(step, n_steps)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lambda_": 0.0}, "--lambda: not a usable lambda; expected 0 < lambda <= 1, got 0. 1 is DPO; 0 would drop"),
        ({"lambda_": -0.5}, "--lambda: not a usable lambda; expected 0 < lambda <= 1, got -0.5."),
        ({"lambda_": float("nan")}, "--lambda: not a usable lambda; expected 0 < lambda <= 1, got nan."),
        ({"kind": "linear_increase", "lambda_min": 0.0}, "--lambda-min: not a usable lambda"),
        (
            {"kind": "linear_increase", "lambda_min": 0.9, "lambda_max": 0.8},
            "--lambda-min: lambda_min is above lambda_max; expected at most 0.8, got 0.9",
        ),
        (
            {"kind": "linear_increase", "lambda_": 0.9},
            "--lambda: schedule 'linear_increase' does not use it. It takes --lambda-min and --lambda-max",
        ),
        ({"lambda_min": 0.9}, "--lambda-min: schedule 'constant' does not use it. It takes --lambda"),
        (
            {"kind": "linear"},
            "--lambda-schedule: unknown schedule 'linear'. "
            "Did you mean 'linear_increase'? Known: constant, linear_decrease, linear_increase",
        ),
    ],
)
def test_refused_values(fields: dict, message: str):
    with pytest.raises(DpotoolError) as error:
        LambdaSchedule(**fields)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("fields", "flag"),
    [({"lambda_": 1.05}, "--lambda"), ({"kind": "linear_increase", "lambda_max": 1.05}, "--lambda-max")],
)
def test_above_one_is_opt_in(fields: dict, flag: str):
    with pytest.raises(DpotoolError) as error:
        LambdaSchedule(**fields)
    assert str(error.value).startswith(f"{flag}: above 1 the rejected reward weighs more than the chosen one")
    assert "--allow-lambda-above-one" in str(error.value)
    assert LambdaSchedule(**fields, allow_above_one=True).at(4, 4) == pytest.approx(1.05)


def test_the_risk_of_going_above_one_is_described_and_cited():
    risk = describe_risk(LambdaSchedule("linear_decrease", lambda_max=1.1, allow_above_one=True))
    assert risk is not None
    assert risk.startswith("lambda reaches 1.1: above 1")
    assert "1.05 collapsed (arXiv:2502.07599)" in risk
    assert describe_risk(LambdaSchedule(lambda_=1.0, allow_above_one=True)) is None
