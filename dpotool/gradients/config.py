"""What `dpotool theory-gap` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.settings import DEMO, DRY_RUN, ScreenSettings, SubjectSettings, setting


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
    )
    gamma: float = setting(1.0, "Slope of the smoothed reward accuracy. The paper's figures use 1.")
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
    top: int = setting(5, "Show the N pairs that drive displacement most.", panel="Extent")
    dry_run: bool = setting(False, DRY_RUN)
    check: int = setting(0, "Compute N pairs again by autograd and print the largest error.", panel="Proof")
    verify: int = setting(
        0, "Take real SGD and AdamW steps on the first N pairs and compare the measured gaps with the predicted ones.",
        panel="Proof",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ScreenSettings, SubjectSettings):
    """Settings of one prediction."""

    at: str = setting(
        "from",
        "Where the gradients are taken: at the first checkpoint (from), at the second (to), or half-way (middle).",
    )


OPTIMIZERS = ("adamw", "sgd")


def check_config(config: TheoryConfig) -> None:
    """Refuses settings that no table can be made with, before anything is loaded.

    Raises:
        DpotoolError: one is out of range or unknown.
    """
    if not 0 < config.gamma < float("inf"):
        raise DpotoolError("not a usable gamma", where="--gamma", expected="a number, 0 < gamma", got=str(config.gamma))
    if config.beta is not None and not 0 < config.beta < float("inf"):
        raise DpotoolError("not a usable beta", where="--beta", expected="a number, 0 < beta", got=str(config.beta))
    for name in ("top", "check", "verify"):
        if getattr(config, name) < 0:
            raise DpotoolError("must not be negative", where=f"--{name}", got=str(getattr(config, name)))
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
