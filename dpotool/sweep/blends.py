"""`sweep --blend` trains two lambdas; the lambdas between them are blends of the two models (docs/blend.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpotool.errors import DpotoolError
from dpotool.measures.blend import score_blends
from dpotool.progress import Progress
from dpotool.runs.folder import RunFolder
from dpotool.settings.scoring import BlendConfig
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.plan import Cell, parse_lambdas, plan_blends


def score_between(
    cells: list[Cell], finished: Mapping[str, RunFolder], config: SweepConfig, folder: Path, progress: Progress
) -> dict[int, list[RunFolder]]:
    """Scores the blends of each seed whose two ends are trained; returns seed -> their folders.

    Ends that cannot be blended cost a warning and not the sweep.
    """
    lambdas = parse_lambdas(config.lambdas)
    trained = {(_lambda_of(cell), cell.config.seed): cell.name for cell in cells if _lambda_of(cell) is not None}
    found = {}
    for seed in dict.fromkeys(cell.config.seed for cell in cells):
        ends = [trained.get((lambda_, seed)) for lambda_ in (max(lambdas), min(lambdas))]
        first, second = (finished.get(name) if name is not None else None for name in ends)
        if first is None or second is None:
            continue
        root = folder if seed == config.seed else folder / f"seed{seed}"
        points = {lambda_: RunFolder(root / f"blend-{lambda_:g}") for lambda_ in plan_blends(config)}
        todo = [f"{lambda_:g}" for lambda_, point in points.items() if not point.list_tables("score")]
        try:
            if todo:
                settings = BlendConfig(**choose_how(cells[0]), at=",".join(todo), output=str(root))
                score_blends(str(first.path), str(second.path), settings, progress=progress)
            found[seed] = list(points.values())
        except DpotoolError as error:
            progress.warn(f"no blend was made: {error}")
    return found


def _lambda_of(cell: Cell) -> float | None:
    if cell.config.loss == "dpo":
        return 1.0
    is_fixed = cell.config.loss == "shift" and cell.config.lambda_schedule is None
    return cell.config.lambda_ if is_fixed else None


def choose_how(cell: Cell) -> dict[str, Any]:
    """Settings of the sweep that apply to scoring too."""
    return {name: getattr(cell.config, name) for name in ("batch_tokens", "layout", "device", "trust_remote_code")}
