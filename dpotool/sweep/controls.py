"""The controls of a sweep: each DPO run scaled back and stopped early, scored, so that what costs nothing stands beside
every remedy (docs/controls.md).

DPO is scaled back to a few fixed scales, and then to those at which it keeps the chosen answers as likely as each other
run does: what a run is compared with is then a model, and all but nothing is left to interpolate. A point costs one
scoring. Checkpoints along DPO's training keep their weights alone once the run has finished.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from dpotool.sweep.blends import choose_how
from dpotool.sweep.plan import Cell
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
