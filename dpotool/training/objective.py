"""What a run minimises: a loss, its options and the schedule of its shift factor, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dpotool.errors import DpotoolError
from dpotool.losses.adaptive import ADAPTIVE, AdaptiveLambda
from dpotool.losses.options import LossOptions
from dpotool.losses.registry import get_loss
from dpotool.losses.schedules import LambdaSchedule, describe_risk
from dpotool.losses.spec import LossSpec
from dpotool.progress import SILENT, Progress
from dpotool.settings.fields import flag_of
from dpotool.training.config import TrainConfig

LAMBDA_SETTINGS = (
    "lambda_",
    "lambda_min",
    "lambda_max",
    "lambda_schedule",
    "theory",
    "adaptive_rule",
    "allow_lambda_above_one",
)
"""What speaks of the shift factor, and is an error for a loss that has none."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: a loss, its options, and the schedule of its shift factor."""

    loss: LossSpec
    options: LossOptions
    schedule: LambdaSchedule | None = None
    adaptive: AdaptiveLambda | None = None
    """Then every pair of the training set carries a shift factor of its own (`training.adaptive`)."""

    @property
    def beta(self) -> float:
        """The scale of rewards; a loss without one (SFT) reports none."""
        return float(self.options.get("beta", math.nan))

    def shift_at(self, step: int, n_steps: int) -> float:
        """Returns f(lambda, t) for the optimiser step about to be made, counted from 0; 1 where time plays no part."""
        return 1.0 if self.schedule is None else self.schedule.at(step, n_steps)


def build_objective(config: TrainConfig, progress: Progress = SILENT) -> Objective:
    """Checks loss, options and lambda before anything is loaded.

    Raises:
        DpotoolError: unknown loss, an option out of range or of another loss, or a lambda where there is none.
    """
    loss = get_loss(config.loss)
    shared = {"beta": config.beta, "sft_weight": config.sft_weight}
    options = loss.resolve_options(**{**(config.loss_options or {}), **shared})
    if config.monitor_theory and ("reference" not in loss.needs or loss.takes_tokens):
        raise DpotoolError(
            f"loss {loss.name!r} does not weigh two whole completions against a reference, so it has no u and v",
            where="--monitor-theory",
        )
    if not loss.takes_lambda:
        for name in LAMBDA_SETTINGS:
            if getattr(config, name) not in (None, False) or config.lambda_ == 0:
                loss.refuse_lambda(flag_of(name))
        return Objective(loss, options)
    if config.lambda_schedule == ADAPTIVE:
        return Objective(loss, options, adaptive=_build_adaptive(config))
    for name in ("theory", "adaptive_rule"):
        if getattr(config, name) is not None:
            raise DpotoolError(
                "only per-pair lambda uses it", where=flag_of(name), remedy="Add --lambda-schedule adaptive"
            )
    schedule = LambdaSchedule(
        config.lambda_schedule or "constant",
        config.lambda_,
        config.lambda_min,
        config.lambda_max,
        allow_above_one=config.allow_lambda_above_one,
    )
    risk = describe_risk(schedule)
    if risk is not None:
        progress.warn(risk)
    return Objective(loss, options, schedule)


def record_settings(config: TrainConfig, objective: Objective) -> dict[str, Any]:
    """Returns the settings as run.yaml records them: with the loss's options and the shift factor's schedule."""
    source = objective.schedule or objective.adaptive
    schedule = asdict(source) if source is not None else {}
    return {
        **config.to_dict(),
        **objective.options,
        "lambda_schedule": ADAPTIVE if objective.adaptive is not None else schedule.get("kind"),
        "adaptive_rule": schedule.get("rule"),
        **{name: schedule.get(name) for name in ("lambda_", "lambda_min", "lambda_max")},
        "resume": False,
        "output": None,  # a repetition gets a folder of its own
    }


def _build_adaptive(config: TrainConfig) -> AdaptiveLambda:
    if config.theory is None:
        raise DpotoolError(
            "a factor for each pair needs the pairs' theory table",
            where="--lambda-schedule adaptive",
            remedy=f"Make one with dpotool theory-gap --model {config.model} --split train, and name it with --theory",
        )
    if config.lambda_max is not None:
        raise DpotoolError("a factor for each pair does not use it", where="--lambda-max", remedy="Its upper end is 1")
    return AdaptiveLambda(
        config.adaptive_rule or "sign",
        config.lambda_,
        config.lambda_min,
        allow_above_one=config.allow_lambda_above_one,
    )
