"""What `dpotool sweep` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import setting
from dpotool.training.config import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainingSettings):
    """Settings of a sweep: those of every run in it, and the grid."""

    output: str | None = setting(None, "Sweep folder; without it one whose name follows from the settings.")
    lambdas: str = setting("0.5,0.75,0.9,0.95,1.0", "Fixed shift factors, comma-separated; 1.0 is DPO.", panel="Grid")
    schedules: str = setting(
        "", "Schedules to train too, comma-separated: linear_increase, linear_decrease.", panel="Grid"
    )
