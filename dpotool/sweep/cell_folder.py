"""The folders that a sweep writes to: what is already in them, and whether this sweep made it.

Only what is known to be this sweep's is ever taken for done, continued or taken away: a training run, by its run.yaml,
with the settings of the very cell that the folder belongs to. Anything else there is refused and left as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpotool.errors import DpotoolError, find_place
from dpotool.runs.atomic import writing_to
from dpotool.runs.checked import read_settings
from dpotool.runs.folder import RunFolder
from dpotool.runs.locks import LOCK_NAME
from dpotool.sweep.config import GRID, NOT_SETTINGS, ONCE, SweepConfig
from dpotool.sweep.plan import Cell
from dpotool.training.checkpoints import find_whole
from dpotool.training.config import fill_adapter, fill_in
from dpotool.training.objective import build_objective, record_settings

_FILLED_LATER = ("max_length", "split", "eval_data", "eval_split")
"""Settings that a run finds out while it loads model and data, where they are not given."""
_REMEDY = "Choose another --output, or move it elsewhere; nothing was changed"


def check_folders(folder: Path, cells: Sequence[Cell], config: SweepConfig) -> None:
    """Checks that a sweep's folder belongs to this sweep or is empty, with no other run where its cells would be.

    A wider grid is still the same sweep. Raises DpotoolError, having changed nothing.
    """
    run = RunFolder(folder)
    if run.manifest_path.exists():
        _check_same_sweep(run, config)
        for cell in cells:
            read_own(cell)
        return
    for path in (*(cell.folder.path for cell in cells), folder / "runs.csv", folder / "report.html"):
        if _holds_something(path):
            raise DpotoolError("was there before the sweep, which would write here", where=str(path), remedy=_REMEDY)


def is_finished(cell: Cell) -> bool:
    """Whether a cell is trained already. Raises DpotoolError as `read_own`."""
    manifest = read_own(cell)
    return manifest is not None and manifest["status"] == "finished"


def make_room(cell: Cell) -> bool:
    """Returns whether an unfinished cell has a checkpoint to resume from; without one, its files are removed.

    The caller must hold the lock of the cell's folder. Raises DpotoolError as `read_own`, and where it cannot be
    removed.
    """
    manifest = read_own(cell)
    if manifest is None:
        return False
    path = cell.folder.path
    if find_whole(path, str(manifest["created"])).path is not None:
        return True
    place = find_place(path)  # a link stays, and so does where it leads; the lock stays, for this process holds it
    with writing_to(path):
        # the manifest last, so that a kill in between leaves nothing that nobody knows
        for part in sorted(place.iterdir(), key=lambda part: part.name == cell.folder.manifest_path.name):
            if part.name == LOCK_NAME:
                continue
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink()
    return False


def read_own(cell: Cell) -> dict[str, Any] | None:
    """Returns the manifest of a cell's run, None where nothing has begun.

    Raises DpotoolError where its folder holds anything but a training run of the cell's own settings.
    """
    path = cell.folder.path
    if not _holds_something(path):
        return None
    try:
        manifest = cell.folder.read_manifest()
    except DpotoolError as error:
        is_there = cell.folder.manifest_path.exists()
        got = f"a run.yaml that cannot be read ({error})" if is_there else "something without a run.yaml"
        raise _not_own(path, f"the run {cell.name}", got) from error
    if manifest["kind"] != "train":
        raise _not_own(path, f"the run {cell.name}", f"one of kind {manifest['kind']}")
    for name, ours, theirs in _find_differences(cell, manifest["config"]):
        raise _not_own(path, f"{name} = {ours}", str(theirs))
    return manifest


def _find_differences(cell: Cell, recorded: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, the cell's value and the recorded one, of settings that differ; older runs lack newer settings."""
    config = fill_in(cell.config)
    planned = record_settings(config, build_objective(config)) | {"eval_data": config.eval_data or config.data}
    for name, ours in planned.items():
        if name in NOT_SETTINGS or name not in recorded:
            continue
        theirs = recorded[name]
        is_open = name in _FILLED_LATER and None in (ours, theirs)
        if not is_open and ours != theirs:
            yield name, ours, theirs


def _check_same_sweep(run: RunFolder, config: SweepConfig) -> None:
    manifest = run.read_manifest()
    if manifest["kind"] != "sweep":
        raise _not_own(run.path, "a sweep", f"a run of kind {manifest['kind']}")
    where, remedy = f"{run.manifest_path}: config", "Choose another --output"
    recorded = fill_adapter(read_settings(manifest["config"], SweepConfig, where=where, remedy=remedy)).to_dict()
    for name, value in fill_adapter(config).to_dict().items():
        known = recorded[name]
        if name in (*GRID, *NOT_SETTINGS) or (name in ONCE and known is None):
            continue
        if known != value:
            raise DpotoolError(
                "holds another sweep",
                where=str(run.path),
                expected=f"{name} = {known}",
                got=str(value),
                remedy="Choose another --output, or the settings it began with",
            )


def _holds_something(path: Path) -> bool:
    """Whether there is more than an empty folder; a link that leads nowhere is something."""
    if path.is_dir():
        return any(part.name != LOCK_NAME and not part.name.startswith(".tmp-") for part in path.iterdir())
    return path.exists() or path.is_symlink()


def _not_own(path: Path, expected: str, got: str) -> DpotoolError:
    return DpotoolError("was not made by this sweep", where=str(path), expected=expected, got=got, remedy=_REMEDY)
