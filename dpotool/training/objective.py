"""What a run minimises: a loss, its options and its shift factors, checked before anything is loaded.

Shift factors follow a schedule, or are read for every pair from the theory table of the training pairs.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from dpotool.data.pairs import PairSet
from dpotool.errors import DpotoolError
from dpotool.likelihood.store import hash_pair
from dpotool.losses.adaptive import ADAPTIVE, AdaptiveLambda
from dpotool.losses.options import LossOptions
from dpotool.losses.registry import get_loss
from dpotool.losses.schedules import LambdaSchedule, describe_risk
from dpotool.losses.spec import LossSpec
from dpotool.progress import SILENT, Progress
from dpotool.runs.about import read_metadata
from dpotool.runs.schemas import THEORY_SCHEMA
from dpotool.runs.tables import read_table
from dpotool.settings.fields import flag_of
from dpotool.training.config import TrainConfig
from dpotool.wording import count

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


Values = Float[np.ndarray, " pairs"]
WHOLE = "all trained parameters"
_NEEDED = ("u", "grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm")


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised: a loss, its options, and the schedule of its shift factor."""

    loss: LossSpec
    options: LossOptions
    schedule: LambdaSchedule | None = None
    adaptive: AdaptiveLambda | None = None
    """Then every pair of the training set carries a shift factor of its own (`read_pair_shifts`)."""

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


def read_pair_shifts(rule: AdaptiveLambda, config: TrainConfig, pair_set: PairSet, progress: Progress) -> Values:
    """Computes f of every training pair, in their order.

    Raises:
        DpotoolError: the table is of other data, lacks pairs or holds values that are no numbers.
    """
    assert config.theory is not None
    frame = read_table(config.theory, THEORY_SCHEMA)
    about = read_metadata(config.theory)
    source = pair_set.source
    if about and (about.get("data"), about.get("split")) != (source.name, source.split):
        raise DpotoolError(
            "the theory table is of other pairs",
            where=config.theory,
            expected=f"{source.name} [{source.split}]",
            got=f"{about.get('data')} [{about.get('split')}]",
            remedy=f"Make one: dpotool theory-gap --model {config.model} --data {config.data} --split {source.split}",
        )
    if about.get("parameters", WHOLE) != WHOLE:
        progress.warn(f"{config.theory} counts only a part of what is trained: {about['parameters']}")
    if about and about.get("model") != config.model:
        progress.warn(f"{config.theory} was computed at {about.get('model')}, and training starts from {config.model}")
    rows = frame.drop_duplicates("pair_id").set_index("pair_id")
    ids = [pair.pair_id for pair in pair_set.pairs]
    missing = [pair_id for pair_id in ids if pair_id not in rows.index]
    if missing:
        raise DpotoolError(
            f"the theory table has no row for {len(missing)} of {count(len(ids), 'training pair')}",
            where=config.theory,
            got=f"none for row {missing[0]}, for one",
            remedy="Run theory-gap with the same --limit, --max-length and --truncation as this training",
        )
    _check_pairs(rows["pair_hash"].reindex(ids), pair_set, config.theory)
    values = rows.loc[ids, list(_NEEDED)].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise DpotoolError("the theory table holds values that are no numbers", where=config.theory)
    shifts = rule.compute_shifts(*values.T)
    progress.note(
        f"per-pair lambda ({rule.rule}): mean {shifts.mean():.3f}, from {shifts.min():.3f} to {shifts.max():.3f}, "
        f"1 for {int((shifts == 1).sum())} of {count(len(shifts), 'pair')}"
    )
    return shifts


def _check_pairs(hashes: pd.Series, pair_set: PairSet, path: str) -> None:
    """Compares tokens, not names: other data may have the same name, and other settings make other tokens."""
    others = [
        pair.pair_id
        for pair, known in zip(pair_set.pairs, hashes, strict=True)
        if pd.notna(known) and known != hash_pair(pair)
    ]
    if others:
        raise DpotoolError(
            f"the theory table is of other texts for {len(others)} of {count(len(hashes), 'training pair')}",
            where=path,
            got=f"row {others[0]}, for one, has other tokens",
            remedy="Run theory-gap on these pairs, with the same tokenizer, --max-length and --truncation",
        )
