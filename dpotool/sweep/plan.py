"""The cells of a sweep: one training run each, all from the same start and on the same pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path

from dpotool.errors import DpotoolError
from dpotool.losses.adaptive import ADAPTIVE
from dpotool.losses.registry import find_losses, get_loss
from dpotool.losses.schedules import DEFAULT_LAMBDA
from dpotool.runs.folder import RunFolder
from dpotool.sweep.config import NOT_SETTINGS, SweepConfig
from dpotool.training.config import TrainConfig, TrainingSettings
from dpotool.training.folder import name_data

_LINEAR = ("linear_increase", "linear_decrease")
_SCHEDULES = (*_LINEAR, ADAPTIVE)
_USED_BY = {"lambda_min": _SCHEDULES, "lambda_max": _LINEAR, "theory": (ADAPTIVE,), "adaptive_rule": (ADAPTIVE,)}
"""Setting -> the schedules that take it; an error without one of them."""
ALL = "all"
EARLY = "25%,50%,75%"
"""Steps at which a DPO run saves checkpoints, as shares of the run: DPO stopped early."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep."""

    name: str
    """Folder under the sweep's, e.g. dpo, shift-0.9, linear-increase."""
    config: TrainConfig

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(str(self.config.output)))


def plan_cells(config: SweepConfig, folder: Path) -> list[Cell]:
    """Returns the runs to make, DPO first, then by falling lambda, then schedules and other losses; seed after seed.

    Raises:
        DpotoolError: the grid is empty, repeats itself, cannot be read, or has ends for schedules it does not have.
    """
    config.check_switches()
    lambdas = sorted(parse_lambdas(config.lambdas), reverse=True)
    if config.blend:
        plan_blends(config)
        lambdas = [lambdas[0], *([] if config.check_at is None else [config.check_at]), lambdas[-1]]
    cells = [_fixed(config, folder, value) for value in lambdas]
    kinds = _parse_schedules(config.schedules)
    _refuse_unused(config, kinds)
    for kind in kinds:
        cells += _adaptive(config, folder) if kind == ADAPTIVE else [_linear(config, folder, kind)]
    trained = {cell.name for cell in cells}
    others = plan_losses(config, folder)
    cells += [cell for cell in others if cell.config.loss not in ("dpo", "shift") or cell.name not in trained]
    once = list(cells)
    cells += [_reseed(cell, folder, config.seed + extra) for extra in range(1, config.seeds) for cell in once]
    if not cells:
        raise DpotoolError("nothing to train", where="sweep", remedy="Give --lambdas, --schedules or --losses")
    names = [cell.name for cell in cells]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DpotoolError(
            f"asked for twice: {', '.join(repeated)}",
            where="sweep",
            remedy="Name each of them once",
        )
    return cells


def plan_blends(config: SweepConfig) -> list[float]:
    """Returns the lambdas that are blended and not trained, falling; the one that is checked is both.

    Raises:
        DpotoolError: --check-at does not lie between the ends, or nothing does.
    """
    lambdas = parse_lambdas(config.lambdas)
    checked = [] if config.check_at is None else [config.check_at]
    low, high = min(lambdas, default=0.0), max(lambdas, default=0.0)
    if not all(low < value < high for value in checked):
        expected = f"a lambda between {low:g} and {high:g}"
        raise DpotoolError("lies not between the ends", where="--check-at", expected=expected, got=f"{checked[0]:g}")
    between = sorted({value for value in (*lambdas, *checked) if low < value < high}, reverse=True)
    if not between:
        raise DpotoolError(
            "nothing lies between the ends", where="--blend", got=f"--lambdas {config.lambdas}",
            remedy="Name three lambdas or more",
        )  # fmt: skip
    return between


def choose_folder(config: SweepConfig) -> Path:
    """Returns the sweep's folder: the same settings lead to the same one, so that a second call continues the first."""
    if config.output:
        return Path(config.output)
    settings = {name: value for name, value in config.to_dict().items() if name not in NOT_SETTINGS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"sweep-{name_data(config)}-{digest}"


def _fixed(config: SweepConfig, folder: Path, lambda_: float) -> Cell:
    if lambda_ == 1:
        save_at = config.save_at or (EARLY if config.controls else None)
        return Cell("dpo", _train_config(config, folder / "dpo", loss="dpo", save_at=save_at))
    name = f"shift-{lambda_:g}"
    return Cell(name, _train_config(config, folder / name, loss="shift", lambda_=lambda_))


def _linear(config: SweepConfig, folder: Path, kind: str) -> Cell:
    name = kind.replace("_", "-")
    ends = {"lambda_min": config.lambda_min, "lambda_max": config.lambda_max}
    return Cell(name, _train_config(config, folder / name, loss="shift", lambda_schedule=kind, **ends))


def _adaptive(config: SweepConfig, folder: Path) -> list[Cell]:
    """A cell for each rule. Raises DpotoolError where there is no theory table or it cannot be found."""
    if config.theory is not None and not Path(config.theory).is_file():
        remedy = "Name a table, START/theory/DATA-train.parquet, as `dpotool theory-gap --split train` leaves it"
        raise DpotoolError("no such table", where="--theory", got=config.theory, remedy=remedy)
    cells = []
    for rule in [part.strip() for part in (config.adaptive_rule or "").split(",") if part.strip()] or ["sign"]:
        name = f"adaptive-{rule}"
        own = {"adaptive_rule": rule, "theory": config.theory, "lambda_min": config.lambda_min}
        cells.append(Cell(name, _train_config(config, folder / name, loss="shift", lambda_schedule=ADAPTIVE, **own)))
    return cells


def _refuse_unused(config: SweepConfig, kinds: list[str]) -> None:
    for name, users in _USED_BY.items():
        if getattr(config, name) is not None and not set(users) & set(kinds):
            raise DpotoolError(
                "no schedule in this sweep uses it",
                where=f"--{name.replace('_', '-')}",
                remedy=f"Give --schedules {' or '.join(users)}, or leave it out",
            )


def plan_losses(config: SweepConfig, folder: Path) -> list[Cell]:
    """Returns the runs of --losses and --grid: one for each loss, or for each combination of its options' values.

    Raises:
        DpotoolError: there is no such loss or option, or it does not take the value.
    """
    grid = parse_grid(config.grid)
    losses = list_losses(config.losses)
    cells = []
    for loss in [*losses, *(loss for loss in grid if loss not in losses)]:
        spans = grid.get(loss, {})
        for values in product(*spans.values()):
            cells.append(_with_options(config, folder, loss, dict(zip(spans, values, strict=True))))
    return cells


def _with_options(config: SweepConfig, folder: Path, loss: str, options: Mapping[str, float | str]) -> Cell:
    if loss == "shift" and not options:
        return _fixed(config, folder, DEFAULT_LAMBDA)
    name = "-".join([loss, *(f"{option.replace('_', '-')}-{_show(value)}" for option, value in options.items())])
    spec = get_loss(loss)
    # --beta is the pull to the reference: a loss without one has a beta of another kind, and its own default
    shared: dict[str, object] = {"beta": config.beta if "reference" in spec.needs else None}
    shared |= {"sft_weight": config.sft_weight if spec.takes_rejected else None}
    own = {option: value for option, value in options.items() if option not in shared}
    shared |= {option: value for option, value in options.items() if option in shared}
    return Cell(name, _train_config(config, folder / name, loss=loss, loss_options=own or None, **shared))


def _show(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _reseed(cell: Cell, folder: Path, seed: int) -> Cell:
    """The same cell trained with another seed, on the same pairs: what is cut off for testing stays the same."""
    name = f"{cell.name}-seed{seed}"
    own = cell.config
    split_seed = own.seed if own.split_seed is None else own.split_seed
    return Cell(name, replace(own, seed=seed, split_seed=split_seed, output=str(folder / name)))


def _train_config(config: SweepConfig, folder: Path, **loss: object) -> TrainConfig:
    shared = {field.name: getattr(config, field.name) for field in fields(TrainingSettings)}
    shared |= {"output": str(folder), "lambda_min": None, "lambda_max": None}
    return TrainConfig(**(shared | loss))


def parse_lambdas(text: str) -> list[float]:
    """Reads --lambdas. Raises DpotoolError where it is no list of numbers."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise DpotoolError(
            "not a list of numbers", where="--lambdas", expected="e.g. 0.5,0.9,1.0", got=repr(text)
        ) from None


def _parse_schedules(text: str) -> list[str]:
    kinds = [part.strip().replace("-", "_") for part in text.split(",") if part.strip()]
    for kind in kinds:
        if kind not in _SCHEDULES:
            raise DpotoolError(
                f"unknown schedule {kind!r}", where="--schedules", expected=" or ".join(_SCHEDULES), got=repr(text)
            )
    return kinds


def list_losses(text: str) -> list[str]:
    """Reads --losses: names, or all that can be compared on pairs. Raises DpotoolError for a name that is none."""
    if text.strip() == ALL:
        return [name for name, spec in find_losses().items() if spec.takes_rejected]
    return [get_loss(part).name for part in text.split(",") if part.strip()]


def parse_grid(text: str) -> dict[str, dict[str, list[float | str]]]:
    """Reads 'dpop.lambda_dpop=5,50 simpo.beta=2' as loss -> option -> values, each checked.

    Raises:
        DpotoolError: it cannot be read, or names a loss, option or value that there is not.
    """
    grid: dict[str, dict[str, list[float | str]]] = {}
    for entry in text.split():
        name, equals, values = entry.partition("=")
        loss, dot, option = name.partition(".")
        if not (equals and dot and option and values):
            raise DpotoolError(
                "cannot be read",
                where="--grid",
                expected="LOSS.OPTION=VALUE,VALUE, e.g. dpop.lambda_dpop=5,50",
                got=entry,
            )
        spec = get_loss(loss)
        wanted = option.replace("-", "_")
        if wanted == "lambda":
            spec.refuse_lambda("--grid")
            raise DpotoolError("lambda has an axis of its own", where="--grid", remedy="Use --lambdas")
        known = {each.name: each for each in spec.all_options}
        if wanted not in known:
            remedy = f"It takes {', '.join(known) or 'no options'}"
            raise DpotoolError(f"loss {spec.name!r} has no option {option!r}", where="--grid", remedy=remedy)
        spans = grid.setdefault(spec.name, {})
        spans[wanted] = [known[wanted].check(value) for value in values.split(",") if value.strip()]
    return grid
