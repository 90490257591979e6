"""How lambda changes over training: f(lambda, t), a pure function of the optimiser step.

A schedule is data (it goes into run.yaml) and `at` has no memory, so that a resumed run continues where it stopped. The
loss takes f as an argument, one number or one per pair; what computes it per pair need not be a schedule.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.settings.fields import flag_of

DEFAULT_LAMBDA = 0.95
"""The fixed value whose tables the paper shows beside DPO."""
DEFAULT_LAMBDA_MIN = 0.75
"""Lower end of the widest linear schedule among the paper's released runs; all of them end or start at 1."""
DEFAULT_LAMBDA_MAX = 1.0


def _constant(_progress: float, *, lambda_: float = DEFAULT_LAMBDA) -> float:
    return lambda_


def _linear_increase(
    progress: float, *, lambda_min: float = DEFAULT_LAMBDA_MIN, lambda_max: float = DEFAULT_LAMBDA_MAX
) -> float:
    return progress * (lambda_max - lambda_min) + lambda_min  # t/T (max - min) + min


def _linear_decrease(
    progress: float, *, lambda_min: float = DEFAULT_LAMBDA_MIN, lambda_max: float = DEFAULT_LAMBDA_MAX
) -> float:
    return progress * (lambda_min - lambda_max) + lambda_max  # t/T (min - max) + max


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": _constant,
    "linear_increase": _linear_increase,
    "linear_decrease": _linear_decrease,
}
"""Kind -> function of progress t/T in [0, 1]; its keyword arguments are the values the kind takes, with defaults."""


def get_schedule_defaults(kind: str) -> dict[str, float]:
    """Returns the values that a kind of schedule takes, with their defaults."""
    parameters = inspect.signature(SCHEDULES[kind]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


@dataclass(frozen=True, slots=True)
class LambdaSchedule:
    """f over optimiser steps t = 0..T (arXiv:2502.07599).

    `constant` takes lambda_; `linear_increase` and `linear_decrease` take lambda_min and lambda_max. What is left None
    gets its default; what the kind does not take must stay None.

    Every value must lie in (0, 1]: 1 is DPO, and 0 would drop the rejected completion from the loss.

    Raises:
        DpotoolError: unknown kind, value out of range or not taken by the kind, or lambda_min above lambda_max.
    """

    kind: str = "constant"
    lambda_: float | None = None
    lambda_min: float | None = None
    lambda_max: float | None = None
    allow_above_one: bool = False
    """Accept values above 1 (`--allow-lambda-above-one`); see `describe_risk`."""

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise DpotoolError(
                f"unknown schedule {self.kind!r}",
                where="--lambda-schedule",
                remedy=suggest_nearest(self.kind, SCHEDULES),
            )
        defaults = get_schedule_defaults(self.kind)
        for name in ("lambda_", "lambda_min", "lambda_max"):
            if name not in defaults:
                self._refuse_unused(name)
                continue
            value = getattr(self, name)
            # The way a frozen dataclass fills in what its user left open.
            object.__setattr__(self, name, self._check(name, defaults[name] if value is None else value))
        if self.lambda_min is not None and self.lambda_max is not None and self.lambda_min > self.lambda_max:
            raise DpotoolError(
                "lambda_min is above lambda_max",
                where="--lambda-min",
                expected=f"at most {self.lambda_max:g}",
                got=f"{self.lambda_min:g}",
            )

    def at(self, step: int, n_steps: int) -> float:
        """Computes f at an optimiser step.

        Args:
            step: t, optimiser steps done so far: 0 for the first step of training, n_steps once training has ended.
            n_steps: T, optimiser steps of the whole run. The last step of training has t = T - 1, so a linear schedule
                comes within one step of its end value and reaches it exactly when training is over.

        Raises:
            ValueError: the step lies outside 0..n_steps.
        """
        if not 0 <= step <= n_steps or n_steps < 1:
            raise ValueError(f"step {step} of {n_steps}: expected 0 <= step <= n_steps and n_steps >= 1")
        values = {name: getattr(self, name) for name in get_schedule_defaults(self.kind)}
        return SCHEDULES[self.kind](step / n_steps, **values)

    def _check(self, name: str, value: float) -> float:
        number = float(value)
        if not number > 0 or math.isinf(number):
            raise DpotoolError(
                "not a usable lambda",
                where=flag_of(name),
                expected="0 < lambda <= 1",
                got=f"{number:g}",
                remedy="1 is DPO; 0 would drop the rejected completion from the loss",
            )
        if number > 1 and not self.allow_above_one:
            raise DpotoolError(
                "above 1 the rejected reward weighs more than the chosen one",
                where=flag_of(name),
                expected="0 < lambda <= 1",
                got=f"{number:g}",
                remedy="The paper's run with 1.05 collapsed (arXiv:2502.07599); allow it with --allow-lambda-above-one",
            )
        return number

    def _refuse_unused(self, name: str) -> None:
        if getattr(self, name) is not None:
            taken = " and ".join(map(flag_of, get_schedule_defaults(self.kind)))
            raise DpotoolError(
                f"schedule {self.kind!r} does not use it", where=flag_of(name), remedy=f"It takes {taken}"
            )


def describe_risk(schedule: LambdaSchedule) -> str | None:
    """Returns the warning to show for a schedule that goes above 1, or None for one that does not."""
    highest = max(schedule.at(0, 1), schedule.at(1, 1))
    if highest <= 1:
        return None
    return (
        f"lambda reaches {highest:g}: above 1 the rejected reward weighs more than the chosen one. "
        "The DPO-Shift paper's own run with 1.05 collapsed (arXiv:2502.07599)."
    )
