"""What `dpotool score` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import COUNT, DRY_RUN, ScreenSettings, SubjectSettings, setting

_DEVICE_MAP = "Spread a model that one device does not hold over all GPUs, then memory, then disk: auto. Disk is slow."


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScreenSettings, SubjectSettings):
    """Settings of one scoring."""

    beta: float | None = setting(
        None, "Scale of the rewards. The default is the beta that the run was trained with, or 0.1."
    )
    noise_floor: bool = setting(
        True, "Score a sample of 8 to 32 pairs twice to measure rounding error. --no-noise-floor skips this."
    )
    measures: str = setting(
        "", "Further measures to compute for each pair, separated by commas. docs/cli.md lists them."
    )
    label: str | None = setting(
        None, "Name of the model in tables and pictures. The default is the name of its folder."
    )
    loss: str | None = setting(
        None, "Loss that a model from elsewhere was trained with, for labels; a run knows its own."
    )
    lambda_: float | None = setting(None, "Its lambda, for labels and axes; with --loss shift.")
    checkpoints: str | None = setting(
        None,
        "Score the checkpoints of the named run, oldest first, and say from which step on it is displaced. Give all, "
        "or step numbers separated by commas.",
    )
    dry_run: bool = setting(False, DRY_RUN)
    device_map: str | None = setting(None, _DEVICE_MAP)
    tokens: bool = setting(False, "Also write the log-probability of every token to a second table.")


@dataclass(frozen=True, kw_only=True)
class BlendConfig(SubjectSettings):
    """Settings of one blending."""

    at: str | None = setting(
        None,
        "Lambdas to blend for, separated by commas. Both models must be DPO or DPO-Shift runs that differ "
        "only in lambda.",
    )
    weight: str | None = setting(
        None, "Shares of the second model, 0 to 1, separated by commas. Without --at the default is 0.25,0.5,0.75."
    )
    write: str | None = setting(
        None, "Save the blend as a checkpoint in this folder, with its scores. Needs a single point."
    )
    beta: float | None = setting(
        None, "Scale of the rewards. The default is the beta that the runs were trained with, or 0.1."
    )


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(SubjectSettings):
    """Settings of one diagnosis."""

    mass: bool = setting(
        True, "Find out where the probability went at every position of the chosen answers. --no-mass skips this."
    )
    rejected_mass: bool = setting(False, "Also look at every position of the rejected answers.")
    positions: int | None = setting(None, "Look only at the first N positions of each answer.", range=COUNT)
    theory: str | None = setting(
        None,
        "Theory table of the same pairs, whose driver scores join the risk measures. The default is one near the run.",
    )
    device_map: str | None = setting(None, _DEVICE_MAP)
    dry_run: bool = setting(False, DRY_RUN)
    full: bool = setting(False, "Print every table instead of the first screen.")
