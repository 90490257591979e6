"""Runs a sweep: trains every cell from the same start, scores it, and writes the table of all runs.

The reference values are computed by the first run and found in the store by the others. What is finished stays
finished: a second call with the same settings trains only what is missing. A cell that fails is reported at the end
and does not stop the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dpotool.compare.runs_table import open_runs, tabulate_runs
from dpotool.data.pair_sets import load_rows
from dpotool.errors import DpotoolError
from dpotool.losses.registry import get_loss
from dpotool.measures.run import score_models
from dpotool.progress import SILENT, Progress
from dpotool.runs.about import read_metadata
from dpotool.runs.atomic import as_cells, atomic_path, ensure_writable
from dpotool.runs.folder import RunFolder
from dpotool.runs.locks import InUseError, holding
from dpotool.runs.manifest import collect_manifest
from dpotool.settings.scoring import ScoreConfig
from dpotool.sweep.board import DONE, FAILED, SCORING, STOPPED, TRAINING, Board
from dpotool.sweep.cell_folder import check_folders, is_finished, make_room
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.parallel import Apart, train_apart
from dpotool.sweep.plan import ALL, Cell, choose_folder, list_losses, plan_cells
from dpotool.sweep.untrained import score_between, score_controls
from dpotool.training.arguments import check_arguments
from dpotool.training.config import check_config, fill_in
from dpotool.training.objective import build_objective
from dpotool.training.run import train

Watch = Callable[[Board], AbstractContextManager[None]]
"""Shows what the runs are doing while the block runs."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep has after this call."""

    folder: Path
    table: pd.DataFrame
    """The runs table (`compare.runs_table`) of the finished cells."""
    failures: dict[str, str]
    """Cell -> why it failed."""
    n_trained: int
    """Cells trained by this call; the others were there."""
    was_interrupted: bool = False


def _watch_nothing(_board: Board) -> AbstractContextManager[None]:
    return nullcontext()


def sweep(config: SweepConfig, *, progress: Progress = SILENT, watch: Watch = _watch_nothing) -> SweepResult:
    """Trains and scores the whole grid and writes runs.csv beside the cells.

    Several processes may work on one sweep at the same time: each cell is done by one of them, and the others take
    other cells, or wait at the end for the last ones.

    Raises:
        DpotoolError: the settings of any cell are wrong, the folder holds another sweep or what no sweep made (both
            before anything runs), or no cell could be finished.
    """
    folder = choose_folder(config)
    config = leave_out_unusable(config, progress)
    check_cells(config, folder)
    with holding(folder, "sweep", waits=True, note=progress.note):
        cells = check_cells(config, folder)  # another process may have begun the sweep meanwhile
        _claim(folder, config)
    board = Board(cells)
    with watch(board):
        apart = train_apart(_find_open(cells), config.jobs, board, progress) if config.jobs > 1 else Apart(0)
        return _run_cells(folder, cells, apart, board, config, progress)


def _run_cells(
    folder: Path, cells: list[Cell], apart: Apart, board: Board, config: SweepConfig, progress: Progress
) -> SweepResult:
    """Trains the cells that are not trained, and scores all; after an interruption it only lists what is finished."""
    failures: dict[str, str] = {}
    finished: dict[str, RunFolder] = {}
    n_trained, was_interrupted = apart.n_trained, apart.was_interrupted
    todo = deque((cell, False) for cell in cells)
    while todo:
        cell, waits = todo.popleft()
        try:
            outcome = "interrupted" if was_interrupted else _run_cell(cell, board, progress, waits=waits)
        except DpotoolError as error:
            if isinstance(error, InUseError) and not waits:  # by another process of this sweep; others first
                todo.append((cell, True))
                continue
            failures[cell.name] = str(error)
            board.enter(cell.name, FAILED)
            progress.warn(f"{cell.name}: {error}")
            continue
        except BaseException:
            RunFolder(folder).update_manifest(status="interrupted")
            raise
        was_interrupted = was_interrupted or outcome == "interrupted"
        n_trained += outcome == "trained"
        if outcome != "interrupted" or _is_scored(cell):
            finished[cell.name] = RunFolder(Path(folder / cell.name))
    in_order = [finished[cell.name] for cell in cells if cell.name in finished]
    if not was_interrupted:
        blends = score_between(cells, finished, config, folder, progress) if config.blend else {}
        if config.controls:
            score_controls(cells, finished, blends, progress)
        in_order = _sort_in(in_order, [point for points in blends.values() for point in points])
    return _conclude(folder, in_order, failures, n_trained, was_interrupted)


def _sort_in(runs: list[RunFolder], blends: list[RunFolder]) -> list[RunFolder]:
    """Returns the runs with each blend behind the last one whose lambda is no smaller."""
    in_order = list(runs)
    for blend in blends:
        own = blend.read_manifest()["config"]["lambda_"]
        places = [place for place, run in enumerate(in_order) if (_read_lambda(run) or -1.0) >= own]
        in_order.insert(max(places, default=-1) + 1, blend)
    return in_order


def _read_lambda(run: RunFolder) -> float | None:
    config = run.read_manifest()["config"]
    value: float | None = 1.0 if config["loss"] == "dpo" else config.get("lambda_")
    return value


def leave_out_unusable(config: SweepConfig, progress: Progress) -> SweepConfig:
    """Returns the settings with `--losses all` spelt out: without those that need scores, where the pairs have none."""
    if config.losses.strip() != ALL:
        return config
    names = list_losses(config.losses)
    scored = [name for name in names if "scores" in get_loss(name).needs]
    rows = load_rows(config, seed=config.seed, default_split="train").pairs if scored else []
    if all(row.score_chosen is not None and row.score_rejected is not None for row in rows):
        return replace(config, losses=",".join(names))
    progress.note(f"left out, as {config.data} has no scores of its pairs: {', '.join(scored)}")
    return replace(config, losses=",".join(name for name in names if name not in scored))


def check_cells(config: SweepConfig, folder: Path) -> list[Cell]:
    """Returns the cells of a sweep.

    Raises DpotoolError when the settings of any of them cannot be used, or its folder holds what this sweep did not
    make.
    """
    cells = plan_cells(config, folder)
    for cell in cells:
        check_config(cell.config)
        build_objective(cell.config)  # its warnings are for the run to say
    check_arguments(fill_in(cells[0].config))  # the same for every cell
    check_folders(folder, cells, config)
    return cells


def _find_open(cells: list[Cell]) -> list[Cell]:
    return [cell for cell in cells if not is_finished(cell)]


def _run_cell(cell: Cell, board: Board, progress: Progress, *, waits: bool) -> str:
    """Returns 'trained', 'kept' or 'interrupted'; a finished cell does not change, an interrupted one is resumed.

    Raises InUseError where another process is at work on the cell and is not to be waited for.
    """
    if _is_scored(cell):
        board.enter(cell.name, DONE)
        return "kept"
    with holding(cell.folder.path, "sweep", waits=waits, note=progress.note):
        was_finished = is_finished(cell)
        if not was_finished:
            can_resume = make_room(cell)
            board.enter(cell.name, TRAINING)
            result = train(replace(cell.config, resume=can_resume), progress=progress)
            if result.was_interrupted:
                board.enter(cell.name, STOPPED)
                return "interrupted"
        if not _is_scored(cell):
            board.enter(cell.name, SCORING)
            settings = ScoreConfig(
                batch_tokens=cell.config.batch_tokens,
                layout=cell.config.layout,
                device=cell.config.device,
                trust_remote_code=cell.config.trust_remote_code,
            )
            score_models([str(cell.folder.path)], settings, progress=progress)
        board.enter(cell.name, DONE)
        return "kept" if was_finished else "trained"


def _is_scored(cell: Cell) -> bool:
    """Whether the cell's run was scored with its recorded settings."""
    tables = cell.folder.list_tables("score")
    return is_finished(cell) and any(not read_metadata(table).get("variant") for table in tables)


def _claim(folder: Path, config: SweepConfig) -> None:
    """Makes the sweep's folder, or notes in it that the sweep goes on, maybe with a wider grid."""
    run = RunFolder(folder)
    if run.manifest_path.exists():
        run.update_manifest(status="running", config=config.to_dict())
        return
    ensure_writable(folder)
    run.write_manifest(collect_manifest("sweep", config.to_dict()))


def _conclude(
    folder: Path, finished: list[RunFolder], failures: dict[str, str], n_trained: int, was_interrupted: bool
) -> SweepResult:
    run = RunFolder(folder)
    with holding(folder, "sweep", waits=True):
        run.update_manifest(status="interrupted" if was_interrupted else "failed" if failures else "finished")
    if not finished and failures:
        name, reason = next(iter(failures.items()))
        raise DpotoolError(f"no cell could be finished; {name}: {reason}", where=str(folder))
    table = tabulate_runs(open_runs(finished))
    with atomic_path(folder / "runs.csv") as path:
        as_cells(table).to_csv(path, index=False)
    return SweepResult(folder, table, failures, n_trained, was_interrupted)
