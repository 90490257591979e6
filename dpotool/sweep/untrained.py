"""What a sweep scores without training it: blends between two lambdas, and the controls of each DPO run.

`sweep --blend` trains two lambdas; the lambdas between them are blends of the two models (docs/blend.md). The controls
are DPO scaled back and stopped early, so that what costs nothing stands beside every remedy (docs/controls.md).

DPO is scaled back to a few fixed scales, and then to those at which it keeps the chosen answers as likely as each other
run does: what a run is compared with is then a model, and all but nothing is left to interpolate. A point costs one
scoring. Checkpoints along DPO's training keep their weights alone once the run has finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpotool.compare.controls import CHOSEN, FOLDER, SCALED, find_curves, read_columns
from dpotool.compare.runs_table import find_scores
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.measures.blend import score_blends
from dpotool.measures.run import score_models
from dpotool.progress import Progress
from dpotool.runs.folder import RunFolder, is_checkpoint_name
from dpotool.runs.locks import holding
from dpotool.settings.scoring import BlendConfig, ScoreConfig
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.plan import Cell, parse_lambdas, plan_blends
from dpotool.training.checkpoints import slim

SCALES = (0.25, 0.5, 0.75)
_APART = 0.01
"""Scales nearer to each other than this are one."""


def score_controls(
    cells: list[Cell],
    finished: Mapping[str, RunFolder],
    blends: Mapping[int, list[RunFolder]],
    progress: Progress,
) -> None:
    """Scores the controls of every finished DPO run; what is scored already is not scored again.

    One that cannot be scored costs a warning and not the sweep.

    Args:
        blends: seed -> blends to compare with, as with its runs.
    """
    for cell in cells:
        if cell.config.loss != "dpo" or cell.name not in finished:
            continue
        others = [*blends.get(cell.config.seed, [])]
        others += [
            finished[each.name]
            for each in cells
            if each.name in finished and each is not cell and each.config.seed == cell.config.seed
        ]
        try:
            with holding(cell.folder.path / FOLDER, "sweep", waits=True, note=progress.note):
                _score_stopped(cell, progress)
                _score_scaled(cell, list(SCALES), progress)
                _score_scaled(cell, find_matching_scales(cell.folder, others), progress)
        except DpotoolError as error:
            progress.warn(f"{cell.name} has no controls: {error}")


def _score_stopped(cell: Cell, progress: Progress) -> None:
    """Scores the checkpoints along the run's training, and takes out of them what nothing needs any more."""
    paths = [path for path in cell.folder.path.glob("checkpoint-*") if is_checkpoint_name(path.name)]
    for path in paths:
        slim(path)
    todo = [str(path) for path in paths if not RunFolder(path).list_tables("score")]
    if todo:
        score_models(todo, ScoreConfig(**choose_how(cell), noise_floor=False), progress=progress)


def _score_scaled(cell: Cell, scales: list[float], progress: Progress) -> None:
    """Scores start + t (DPO - start) for each t, into the folder of the DPO run."""
    known = _list_scales(cell.folder)
    todo = [scale for scale in scales if all(abs(scale - each) > 1e-9 for each in known)]
    if todo:
        weights = ",".join(f"{scale:g}" for scale in todo)
        config = BlendConfig(**choose_how(cell), weight=weights, output=str(cell.folder.path / FOLDER))
        score_blends(cell.config.model, str(cell.folder.path), config, progress=progress)


def _list_scales(full: RunFolder) -> list[float]:
    return [point.share for curve in find_curves(_open(full)) if curve.kind == SCALED for point in curve.points]


def _open(folder: RunFolder) -> ScoredRun:
    return ScoredRun.open(find_scores(folder)[0])


def find_matching_scales(full: RunFolder, others: list[RunFolder]) -> list[float]:
    """Returns the scales at which the run keeps the chosen answers as likely as each of the others does, as estimated.

    On the curve through the scales that are scored already; a run that no scale can match has none.
    """
    curve = next((curve for curve in find_curves(_open(full)) if curve.kind == SCALED), None)
    if curve is None:
        return []
    shares, columns = curve.read(curve.pair_ids)
    changes = [float(each[CHOSEN].mean()) for each in columns]
    found: list[float] = []
    for other in others:
        wanted = float(read_columns(_open(other))[CHOSEN].mean())
        scale = _find_scale(wanted, shares, changes)
        if scale is not None and all(abs(scale - each) > _APART for each in (*shares, *found)):
            found.append(scale)
    return found


def _find_scale(wanted: float, shares: list[float], changes: list[float]) -> float | None:
    """Where a curve through the points takes the value: on the parabola through the three points around it."""
    for place in reversed(range(len(shares) - 1)):
        low, high = sorted((changes[place], changes[place + 1]))
        if low <= wanted <= high and low < high:
            first = min(max(place - 1, 0), len(shares) - 3)
            a, b, c = np.polyfit(shares[first : first + 3], changes[first : first + 3], 2)
            roots = np.roots([a, b, c - wanted])
            inside = [
                float(root.real)
                for root in roots
                if abs(root.imag) < 1e-9 and shares[place] <= root.real <= shares[place + 1]
            ]
            return round(inside[0], 3) if inside else None
    return None


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
