"""What `dpotool theory-gap` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.errors import DpotoolError
from dpotool.settings import DEMO, SubjectSettings, setting


@dataclass(frozen=True, kw_only=True)
class TheoryConfig(SubjectSettings):
    """Settings of one theory table."""

    model: str = setting(
        DEMO, "Model at which the gradients are taken: run folder, checkpoint, hub id or builtin:demo."
    )
    lambdas: str = setting("0.5,0.75,0.9,0.95", "Shift factors to give the theorem's gaps for, comma-separated.")
    gamma: float = setting(1.0, "Slope of the smoothed reward accuracy; 1 in the paper's figures.")


def parse_lambdas(text: str) -> list[float]:
    """Reads '0.5,0.9' as numbers, each above 0.

    Raises:
        DpotoolError: it is no such list.
    """
    try:
        lambdas = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        lambdas = []
    if not lambdas or not all(0 < value < float("inf") for value in lambdas):
        raise DpotoolError(
            "not a list of shift factors", where="--lambdas", expected="e.g. 0.5,0.9,1.0", got=repr(text)
        )
    return lambdas
