"""What a sweep would do: its cells, and how much work they are, before anything is loaded but the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpotool.data.pair_sets import load_rows
from dpotool.progress import SILENT, Progress
from dpotool.sweep.cell_folder import is_finished
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.plan import Cell, choose_folder
from dpotool.sweep.run import check_cells, leave_out_unusable
from dpotool.training.arguments import count_steps
from dpotool.training.config import TrainingSettings, fill_in
from dpotool.training.preparation import describe_evaluation


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """A sweep that has not begun, or not ended."""

    folder: str
    cells: list[dict[str, Any]]
    """`name`, `loss`, `lambda`, `schedule`, `seed`, `steps`, `is_finished`."""
    n_train: int
    """Rows to train on; what does not fit or repeats is not known yet."""
    n_test: int | None
    """Rows to score; None without a test split."""
    seconds_per_step: float | None
    """Pace of the runs of this sweep that are finished; None before there is one."""

    @property
    def n_open(self) -> int:
        return sum(not cell["is_finished"] for cell in self.cells)

    @property
    def n_steps(self) -> int:
        """Optimiser steps still to take."""
        return sum(cell["steps"] for cell in self.cells if not cell["is_finished"])

    @property
    def seconds(self) -> float | None:
        """Training still to do, one run at a time, at that pace."""
        return None if self.seconds_per_step is None else self.n_steps * self.seconds_per_step

    def to_dict(self) -> dict[str, Any]:
        return {
            "sweep": self.folder,
            "cells": self.cells,
            "n_open": self.n_open,
            "n_steps": self.n_steps,
            "seconds": self.seconds,
            "n_train": self.n_train,
            "n_test": self.n_test,
        }


def plan_sweep(config: SweepConfig, progress: Progress = SILENT) -> SweepPlan:
    """Returns what `sweep` would train with these settings.

    Raises DpotoolError as `sweep` does before anything runs, and when the data cannot be read.
    """
    folder = choose_folder(config)
    config = leave_out_unusable(config, progress)
    cells = check_cells(config, folder)
    n_train = _count_rows(config, "train")
    evaluation = describe_evaluation(config)
    n_test = None if evaluation is None else _count_rows(evaluation, "test")
    rows = []
    for cell in cells:
        filled = fill_in(cell.config)
        rows.append(
            {
                "name": cell.name,
                "loss": filled.loss,
                "lambda": 1.0 if filled.loss == "dpo" else filled.lambda_,
                "schedule": filled.lambda_schedule,
                "seed": filled.seed,
                "steps": count_steps(filled, n_train),
                "is_finished": is_finished(cell),
            }
        )
    return SweepPlan(str(folder), rows, n_train, n_test, _measure_pace(cells))


def _measure_pace(cells: list[Cell]) -> float | None:
    """Mean seconds a step, over the finished cells whose metrics tell how long their training took."""
    paces = []
    for cell in cells:
        rows = cell.folder.read_metrics() if is_finished(cell) and cell.folder.metrics_path.is_file() else []
        paces += [row["train_runtime"] / row["step"] for row in rows if row.get("train_runtime") and row.get("step")]
    return sum(paces) / len(paces) if paces else None


def _count_rows(settings: TrainingSettings, default_split: str) -> int:
    return len(load_rows(settings, seed=settings.seed, default_split=default_split).pairs)
