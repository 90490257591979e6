"""Deletes chosen entries of the cache: only files that dpotool wrote, recognised by their names."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dpotool.cache.entries import MADE, MAKING_PREFIX, CacheEntry, cache_root, list_own_files
from dpotool.errors import DpotoolError, expand_home, find_place
from dpotool.runs.locks import InUseError, keeping_users_out, refuse_held


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was deleted."""

    n_entries: int
    n_files: int
    n_bytes: int
    left: tuple[Path, ...]
    """Folders that stay, for the files in them that are not dpotool's."""
    used: tuple[Path, ...] = ()
    """Built-in models that stay, because another command is using them."""


def choose_entries(
    entries: Sequence[CacheEntry], *, model: str | None = None, older_than_days: float | None = None
) -> list[CacheEntry]:
    """Returns the entries of a model (name or path as listed, its last part, or a fingerprint's beginning), unused for
    so many days; without either, all of them.

    Raises:
        DpotoolError: no entry is of that model.
    """
    chosen = [entry for entry in entries if model is None or is_of_model(entry, model)]
    if model is not None and not chosen:
        raise DpotoolError(
            "nothing in the cache is of this model",
            where=model,
            remedy="`dpotool cache ls` lists names and fingerprints",
        )
    if older_than_days is None:
        return chosen
    oldest = datetime.now(UTC) - timedelta(days=older_than_days)
    return [entry for entry in chosen if entry.last_used < oldest]


def is_of_model(entry: CacheEntry, model: str) -> bool:
    """Tells whether an entry belongs to the model with this name, path or fingerprint."""
    names = {name for known in entry.models for name in (known, Path(known).name)}
    is_fingerprint = len(model) >= 4 and entry.fingerprint.startswith(model)
    return is_fingerprint or bool(names & {model, model.rstrip("/"), str(find_place(expand_home(model)))})


def clear_entries(entries: Sequence[CacheEntry]) -> Cleared:
    """Deletes the files of the entries, and their folders if nothing else is in them.

    Raises:
        DpotoolError: a file cannot be deleted.
    """
    n_files = n_bytes = 0
    left, used = [], []
    for entry in entries:
        with keeping_users_out(entry.path / MADE) as is_free:
            if not is_free:
                used.append(entry.path)
                continue
            for path in list_own_files(entry.path):
                n_bytes += _delete(path)
                n_files += 1
            _remove_empty_folders(entry.path)
        if entry.path.exists():
            left.append(entry.path)
    return Cleared(len(entries) - len(used), n_files, n_bytes, tuple(left), tuple(used))


def clear_unfinished() -> None:
    """Removes what a kill left of a built-in model in the making, unless one is being made right now."""
    root = cache_root()
    try:
        refuse_held(root)
    except InUseError:
        return
    for folder in root.glob(f"{MAKING_PREFIX}*") if root.is_dir() else ():
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _delete(path: Path) -> int:
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DpotoolError(
            f"cannot be deleted ({error.strerror or error})", where=str(path), remedy="Check who owns the folder"
        ) from None
    return size


def _remove_empty_folders(folder: Path) -> None:
    with suppress(OSError):  # something of others is in it
        for inner in folder.glob("checkpoint-*"):
            if inner.is_dir() and not inner.is_symlink():
                with suppress(OSError):
                    inner.rmdir()
        folder.rmdir()
