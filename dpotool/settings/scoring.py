"""The settings of the commands that compute with a model: score, diagnose, blend, theory-gap and predict."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.settings.fields import BETA, COUNT, COUNT_OR_NONE, LAMBDA, Range, ScreenSettings, setting
from dpotool.settings.shared import DEMO, DRY_RUN, SubjectSettings

_DEVICE_MAP = (
    "With auto, spread a model that does not fit on one device over all GPUs, then memory, then disk. Disk is slow."
)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ScreenSettings, SubjectSettings):
    """Settings of one scoring."""

    beta: float | None = setting(
        None, "Scale of the rewards. The default is the beta that the run was trained with, or 0.1.", range=BETA
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
    loss: str | None = setting(None, "Loss of a model that dpotool did not train, for labels.")
    lambda_: float | None = setting(
        None, "Lambda of that training, for labels and axes. Needs --loss shift.", range=LAMBDA
    )
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
        None, "Scale of the rewards. The default is the beta that the runs were trained with, or 0.1.", range=BETA
    )


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(ScreenSettings, SubjectSettings):
    """Settings of one diagnosis."""

    mass: bool = setting(
        True, "Find out where the probability went at every position of the chosen answers. --no-mass skips this."
    )
    rejected_mass: bool = setting(False, "Also look at every position of the rejected answers.")
    positions: int | None = setting(None, "Look only at the first N positions of each answer.", range=COUNT)
    theory: str | None = setting(
        None,
        "Table of `theory-gap` on the same pairs. Its driver scores are then listed among the risk measures. The "
        "default is a table in the run folder.",
    )
    device_map: str | None = setting(None, _DEVICE_MAP)
    dry_run: bool = setting(False, DRY_RUN)


@dataclass(frozen=True, kw_only=True)
class TheoryConfig(ScreenSettings, SubjectSettings):
    """Settings of one theory table."""

    model: str = setting(
        DEMO, "Model at which the gradients are taken: run folder, checkpoint, hub id or builtin:demo."
    )
    lambdas: str = setting("0.5,0.75,0.9,0.95", "Lambdas to compute gaps and forecasts for, separated by commas.")
    beta: float | None = setting(
        None,
        "Beta of the losses whose steps are compared. The default is the beta that the run was trained with, or 0.1.",
        range=BETA,
    )
    gamma: float = setting(
        1.0,
        "Slope of the smoothed reward accuracy. The paper's figures use 1.",
        range=Range(0, 1e6, includes_low=False),
    )
    parameters: str = setting(
        "all",
        "Parameters whose gradients are used: all (every trained parameter), last-N (the last N decoder layers), lora "
        "or head.",
        panel="Extent",
    )
    pairs_only: bool = setting(
        False,
        "Compute only the products of each pair with itself. This takes a third of the time and no memory for mean "
        "gradients, but gives no batch gaps, no forecast and no recommended lambda.",
        panel="Extent",
    )
    optimizer: str = setting(
        "adamw",
        "Optimizer whose first step is forecast: adamw, which costs one more product per lambda, or sgd.",
        panel="Extent",
    )
    top: int = setting(5, "Show the N pairs that drive displacement most.", panel="Extent", range=COUNT_OR_NONE)
    dry_run: bool = setting(False, DRY_RUN)
    check: int = setting(
        0, "Compute N pairs again by autograd and print the largest error.", panel="Proof", range=COUNT_OR_NONE
    )
    verify: int = setting(
        0, "Take real SGD and AdamW steps on the first N pairs and compare the measured gaps with the predicted ones.",
        panel="Proof",
        range=COUNT_OR_NONE,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ScreenSettings, SubjectSettings):
    """Settings of one prediction."""

    at: str = setting(
        "from",
        "Where the gradients are taken: at the first checkpoint (from), at the second (to), or half-way (middle).",
    )


OPTIMIZERS = ("adamw", "sgd")


def check_theory_config(config: TheoryConfig) -> None:
    """Refuses settings that no table can be made with, before anything is loaded.

    Raises:
        DpotoolError: there is no such optimizer.
    """
    if config.optimizer not in OPTIMIZERS:
        raise DpotoolError(
            f"unknown optimizer {config.optimizer!r}",
            where="--optimizer",
            remedy=suggest_nearest(config.optimizer, OPTIMIZERS),
        )


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
