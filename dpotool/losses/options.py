"""Options of a loss, each with a default and a range, which are checked before anything is loaded or trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.settings.fields import BETA, Range, flag_of

LossOptions = Mapping[str, float | str]
"""Option name -> value, complete and checked; what `LossSpec.resolve_options` returns and `LossSpec.compute` takes."""


@dataclass(frozen=True, slots=True)
class NumberOption:
    """A number within bounds, each of which belongs to the range or not."""

    name: str
    default: float
    help: str
    low: float = -math.inf
    high: float = math.inf
    includes_low: bool = False
    includes_high: bool = False

    def check(self, value: float | str) -> float:
        """Returns the value as a float.

        Raises:
            DpotoolError: it is no finite number in the range.
        """
        if value not in self.range:
            raise DpotoolError(
                f"not a usable {self.name}", where=flag_of(self.name), expected=self.describe_range(), got=str(value)
            )
        return float(value)

    @property
    def range(self) -> Range:
        """What is accepted."""
        return Range(self.low, self.high, self.includes_low, self.includes_high)

    @property
    def default_text(self) -> str:
        """The default as help and docs show it."""
        return f"{self.default:g}"

    def describe_range(self) -> str:
        """Returns the range in words: "a number, 0 <= label_smoothing < 0.5"."""
        return self.range.describe(self.name)


def number_option(
    name: str,
    default: float,
    help: str,  # noqa: A002
    low: float,
    high: float,
    *,
    open_ends: str = "",
) -> NumberOption:
    """Returns an option for a number from `low` to `high`; `open_ends` says which of "low" and "high" lie outside."""
    return NumberOption(
        name, default, help, low, high, includes_low="low" not in open_ends, includes_high="high" not in open_ends
    )


def beta_option(default: float = 0.1, help: str = "strength of the pull towards the reference model") -> NumberOption:  # noqa: A002
    """Returns the option beta, in the range that `--beta` has everywhere."""
    return number_option("beta", default, help, BETA.low, BETA.high)


def share_option(name: str, default: float, help: str, *, open_ends: str = "") -> NumberOption:  # noqa: A002
    """Returns an option for a number from 0 to 1."""
    return number_option(name, default, help, 0.0, 1.0, open_ends=open_ends)


def weight_option(name: str, default: float, help: str) -> NumberOption:  # noqa: A002
    """Returns an option for the weight of a term of a loss."""
    return number_option(name, default, help, 0.0, 1e4)


@dataclass(frozen=True, slots=True)
class ChoiceOption:
    """One of a few words."""

    name: str
    default: str
    help: str
    choices: Sequence[str]

    @property
    def default_text(self) -> str:
        """The default as help and docs show it."""
        return self.default

    def describe_range(self) -> str:
        """Returns the choices in words: "log, raw or ratio"."""
        return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"

    def check(self, value: float | str) -> str:
        """Returns the value.

        Raises:
            DpotoolError: it is none of the choices.
        """
        if value not in self.choices:
            raise DpotoolError(
                f"unknown {self.name} {str(value)!r}",
                where=flag_of(self.name),
                remedy=suggest_nearest(str(value), self.choices),
            )
        return str(value)


LossOption = NumberOption | ChoiceOption


def check_told_lambda(loss: str | None, lambda_: float | None) -> None:
    """Refuses a lambda that the user gives for a model trained elsewhere if its loss has none.

    Raises:
        DpotoolError: `--lambda` is given and the loss is another than `shift`.
    """
    if lambda_ is not None and loss != "shift":
        got = f"--loss {loss}" if loss else "no --loss"
        remedy = "Leave it out, or name that loss too"
        raise DpotoolError(
            "is shown for DPO-Shift only", where="--lambda", expected="--loss shift", got=got, remedy=remedy
        )
