"""Trains several cells of a sweep at a time, each by `dpotool train` in another process.

The first cell runs alone, so that the others find the built-in model and the reference values in the store. What a
process leaves is a run folder like any other: the sweep afterwards scores what is finished and trains what is not.

The first Ctrl-C (or SIGTERM, or SIGHUP) asks every run to end after its step with a checkpoint; the second kills them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch

from dpotool.errors import DpotoolError
from dpotool.models.builtin import locate_model
from dpotool.progress import Progress
from dpotool.runs.atomic import write_yaml, writing_to
from dpotool.runs.locks import InUseError, holding
from dpotool.sweep.board import FAILED, STOPPED, TRAINED, TRAINING, WAITING, Board
from dpotool.sweep.cell_folder import make_room
from dpotool.sweep.plan import Cell
from dpotool.training.resumable import StopOnSignal

_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, slots=True)
class Apart:
    """The results of the cells that other processes trained."""

    n_trained: int
    was_interrupted: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    cell: Cell
    slot: int
    process: subprocess.Popen[bytes]


def train_apart(cells: list[Cell], n_jobs: int, board: Board, progress: Progress) -> Apart:
    """Trains the cells, `n_jobs` at a time. A cell that fails is left for the caller.

    Each process has its share of the processors and, where there are GPUs, one of them. No process outlives this call.
    """
    if not cells:
        return Apart(0)
    locate_model(cells[0].config.model, progress)  # made once, not by all at the same time
    _make_records(cells[0].folder.path.parent)  # a link there raises an error before anything runs
    waiting, running, outcomes = deque(cells), list[_Job](), list[bool]()
    listener = StopOnSignal()
    is_told = False
    try:
        with listener.listening():
            while running or (waiting and not listener.is_stopping):
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    outcomes.append(_conclude(job, board, is_told=is_told))
                if listener.is_stopping and not is_told:
                    is_told = True
                    progress.note(f"stopping after this step: {', '.join(job.cell.name for job in running)}")
                    _signal_all(running, signal.SIGTERM)
                allowed = n_jobs if outcomes else 1
                while waiting and not is_told and len(running) < allowed:
                    slot = min(set(range(n_jobs)) - {job.slot for job in running})
                    cell = waiting.popleft()
                    try:
                        running.append(_start(cell, slot, n_jobs, board))
                    except DpotoolError as error:  # the caller, trying it again, says why, or waits
                        board.enter(cell.name, WAITING if isinstance(error, InUseError) else FAILED)
                        outcomes.append(False)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        _signal_all(running, signal.SIGKILL)
        for job in running:
            job.process.wait()
    return Apart(sum(outcomes), listener.is_stopping)


def _start(cell: Cell, slot: int, n_jobs: int, board: Board) -> _Job:
    """Starts the training of a cell. Raises InUseError where another process is at work on it."""
    folder = cell.folder.path
    words = ["--resume", "--output", str(folder)]
    settings = {name: value for name, value in cell.config.to_dict().items() if value is not None}
    may_run_code = settings.pop("trust_remote_code")
    records = _make_records(folder.parent)
    with holding(folder, "sweep"):
        if not make_room(cell):
            words = ["--config", str(write_yaml(records / f"{cell.name}.yaml", settings))]
    if may_run_code:  # a file is not believed when it says so
        words.append("--trust-remote-code")
    log = records / f"{cell.name}.log"
    with writing_to(log):
        log.unlink(missing_ok=True)
        file = log.open("x", encoding="utf-8")  # never through a link that lies there
    with file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dpotool.sweep.worker", str(os.getpid()), "train", *words],
            env=os.environ | _share(slot, n_jobs),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    board.enter(cell.name, TRAINING)
    return _Job(cell, slot, process)


def _make_records(folder: Path) -> Path:
    """Returns the folder of the recipes and logs of a sweep's runs; a link in its place is refused."""
    records = folder / ".cells"
    if records.is_symlink():
        raise DpotoolError(
            "is a link, and nothing is written through one",
            where=str(records),
            remedy="Remove it, or choose another --output",
        )
    with writing_to(records):
        records.mkdir(parents=True, exist_ok=True)
    return records


def _conclude(job: _Job, board: Board, *, is_told: bool) -> bool:
    """Notes how a process ended; returns whether its run is finished."""
    is_well = job.process.returncode == 0
    board.enter(job.cell.name, TRAINED if is_well else STOPPED if is_told else FAILED)
    return is_well


def _signal_all(jobs: list[_Job], sign: signal.Signals) -> None:
    for job in jobs:
        if job.process.poll() is None:
            job.process.send_signal(sign)


def _share(slot: int, n_jobs: int) -> dict[str, str]:
    """Returns the part of the machine that a process may use."""
    n_gpus = torch.cuda.device_count()
    if n_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(n_gpus)]
        return {"CUDA_VISIBLE_DEVICES": names[slot % len(names)]}
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, n_cpus // n_jobs)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
