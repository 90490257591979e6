"""What each planned run of a sweep is doing, read from its folder, whichever process trains it.

A run's step and log-likelihoods are those of the last row in its metrics.jsonl, once it is done those of its test
pairs; so they are as fresh as `--logging-steps` makes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from dpotool.errors import DpotoolError
from dpotool.runs.checked import parse_json
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import read_score_summary
from dpotool.sweep.plan import Cell
from dpotool.training.arguments import count_steps
from dpotool.training.config import fill_in

WAITING, TRAINING, TRAINED, SCORING, DONE, FAILED, STOPPED = (
    "waiting", "training", "trained", "scoring", "done", "failed", "stopped",
)  # fmt: skip
_TAIL = 65_536
"""Bytes at the end of metrics.jsonl that are read: dozens of rows."""


@dataclass(frozen=True, slots=True)
class CellState:
    """One row of the table."""

    name: str
    phase: str
    step: int | None = None
    n_steps: int | None = None
    """None until the run's pairs are counted."""
    chosen_logps: float | None = None
    """Mean, nats: of the last logged training batch; of the test pairs once done."""
    rejected_logps: float | None = None
    reward_margin: float | None = None
    seconds_left: float | None = None
    """Seconds left of this run's training, at its pace so far."""


class Board:
    """Knows the phase of every cell, as the sweep tells it, and reads the rest."""

    def __init__(self, cells: Sequence[Cell], clock: Callable[[], float] = time.monotonic) -> None:
        self._cells = {cell.name: cell for cell in cells}
        self._phases = dict.fromkeys(self._cells, WAITING)
        self._n_steps: dict[str, int] = {}
        self._began: dict[str, tuple[int, float]] = {}
        self._paces: dict[str, float] = {}
        self._clock = clock
        self._lock = Lock()

    def enter(self, name: str, phase: str) -> None:
        """Records the phase of a cell."""
        self._phases[name] = phase

    def read(self) -> list[CellState]:
        """Returns the state of every cell, in the order of the plan."""
        with self._lock:  # a table refreshes from a thread of its own
            return [self._read(name, phase) for name, phase in list(self._phases.items())]

    def estimate_left(self, states: Sequence[CellState], n_jobs: int = 1) -> float | None:
        """Returns how many seconds of training are left, `n_jobs` runs at a time; None until a pace is known."""
        known = list(self._n_steps.values())
        if not self._paces or not known:
            return None
        pace = sum(self._paces.values()) / len(self._paces)
        usual = sum(known) / len(known)
        steps = sum(
            (state.n_steps or usual) - (state.step or 0) for state in states if state.phase in (WAITING, TRAINING)
        )
        return pace * steps / n_jobs

    def _read(self, name: str, phase: str) -> CellState:
        folder = self._cells[name].folder
        if phase == WAITING:
            return CellState(name, phase)
        n_steps = self._count_steps(name, folder)
        if phase == DONE:
            return CellState(name, phase, n_steps, n_steps, *_read_scored(folder))
        row = _read_last(folder.metrics_path)
        step = int(row.get("step", 0)) if row else None
        left = self._estimate(name, step, n_steps) if phase == TRAINING else None
        chosen, rejected, margin = (
            _number(row.get(key)) for key in ("logps/chosen", "logps/rejected", "rewards/margins")
        )
        return CellState(name, phase, step, n_steps, chosen, rejected, margin, left)

    def _count_steps(self, name: str, folder: RunFolder) -> int | None:
        if name not in self._n_steps:
            try:
                n_pairs = folder.read_manifest()["data"]["train"]["n_pairs"]
            except (DpotoolError, KeyError, TypeError):
                return None
            self._n_steps[name] = count_steps(fill_in(self._cells[name].config), int(n_pairs))
        return self._n_steps[name]

    def _estimate(self, name: str, step: int | None, n_steps: int | None) -> float | None:
        if step is None or n_steps is None:
            return None
        first, began = self._began.setdefault(name, (step, self._clock()))
        if step <= first:
            return None
        self._paces[name] = (self._clock() - began) / (step - first)
        return self._paces[name] * (n_steps - step)


def _read_last(path: Path) -> dict[str, Any]:
    """Returns the newest value of every key in the last rows; empty where nothing is logged yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    newest: dict[str, Any] = {}
    for line in lines[-40:]:
        try:
            row = parse_json(line)
        except ValueError:
            continue  # cut off by the window, or half-written yet
        newest |= row if isinstance(row, dict) else {}
    return newest


def _read_scored(folder: RunFolder) -> tuple[float | None, float | None, float | None]:
    """Mean log-likelihoods and margin of the newest scores."""
    for table in folder.list_tables("score"):
        summary = read_score_summary(table)
        if summary is None:
            continue
        chosen, rejected, margin = (
            _mean(summary.get(name)) for name in ("chosen_logps", "rejected_logps", "reward_margins")
        )
        return chosen, rejected, margin
    return None, None, None


def _mean(interval: Any) -> float | None:
    return _number(interval.get("mean")) if isinstance(interval, Mapping) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
