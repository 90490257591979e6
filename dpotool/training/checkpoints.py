"""Checkpoints that exist either whole or not at all, and the choice of the one that a run resumes from.

A checkpoint is written into `checkpoint-<step>.saving`, forced to disk, sealed, and only then given its name. Its seal,
`seal.json`, says which run and step it is of, and holds size and SHA-256 of every other file in it. So whatever is
missing, cut short, changed or another run's is noticed before anything is loaded, and an older whole checkpoint is
taken in its place. What is logged later about steps before the checkpoint goes with it (`progress.json`, one for each
process): a resumed run logs the rows that an uninterrupted one does.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import to_builtins
from safetensors import SafetensorError
from transformers import TrainerState

from dpotool.errors import DpotoolError
from dpotool.interruption import deferred
from dpotool.runs.atomic import share_weights, write_json
from dpotool.runs.checked import check_value, load_json, read_json
from dpotool.runs.folder import is_checkpoint_name

SEAL = "seal.json"
STATE = "trainer_state.json"
_MUST_HAVE = (STATE, "progress.json")
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _State(msgspec.Struct):
    """What transformers' Trainer saves of itself; other versions may save more."""

    global_step: _Count
    max_steps: int = 0
    epoch: float | None = None
    logging_steps: float = 1
    eval_steps: float = 1
    save_steps: float = 1
    train_batch_size: _Count | None = None
    num_train_epochs: _Count = 0
    num_input_tokens_seen: _Count = 0
    total_flos: float = 0.0
    log_history: list[dict[str, Any]] = []
    best_metric: float | None = None
    best_global_step: _Count | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, Any] | None = None
    stateful_callbacks: dict[str, dict[str, dict[str, Any]]] | None = None


class _PairSums(msgspec.Struct):
    sums: dict[str, float | None]
    n_pairs: _Count
    shift: float | None


class _Sums(msgspec.Struct):
    pairs: _PairSums
    monitor: dict[str, float]


class _Progress(msgspec.Struct):
    """What a process had counted and summed up when a checkpoint was saved (`ResumableTrainer`)."""

    loss: float
    total_loss: float
    last_logged: _Count
    seconds: float
    n_pairs: dict[str, _Count]
    sums: _Sums


@dataclass(frozen=True, slots=True)
class Found:
    """The newest whole checkpoint of a run, and those newer ones that were passed over."""

    path: Path | None
    passed_over: dict[str, str] = field(default_factory=dict)
    """Name of a checkpoint -> what is wrong with it."""

    @property
    def step(self) -> int:
        """The step it was saved after; 0 where there is none."""
        return read_step(self.path) if self.path is not None else 0


def read_step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a run folder, whole or not, the newest first; links are none."""
    found = [path for path in folder.glob("checkpoint-*") if is_checkpoint_name(path.name)]
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=read_step, reverse=True)


def find_whole(folder: Path, run: str, last_step: int | None = None) -> Found:
    """Returns the newest whole checkpoint of a run, named by when it was created, as its run.yaml has it.

    Args:
        last_step: of the run; what claims to be beyond it is passed over.
    """
    passed_over: dict[str, str] = {}
    for path in list_checkpoints(folder):
        wrong = find_fault(path, run)
        if wrong is None and last_step is not None and read_step(path) > last_step:
            wrong = f"is of step {read_step(path)}, and the run ends at step {last_step}"
        if wrong is None:
            return Found(path, passed_over)
        passed_over[path.name] = wrong
    return Found(None, passed_over)


def find_fault(path: Path, run: str) -> str | None:
    """Returns what is wrong with a checkpoint, as the rest of a sentence about it; None where it is whole."""
    try:
        seal = load_json(path / SEAL)
        step, owner, files = seal["step"], seal["run"], seal["files"]
        sums = {str(name): (int(about["bytes"]), str(about["sha256"])) for name, about in files.items()}
    except FileNotFoundError:
        return f"was not saved completely (it has no {SEAL})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"has a {SEAL} that cannot be read"
    if type(step) is not int or step != read_step(path) or step < 1:
        return f"says that it is of step {str(step)[:20]}"
    if owner != run:
        return "is of another run"
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in sums):
        return "names files outside of it"
    lacking = [name for name in _MUST_HAVE if name not in sums]
    if lacking:
        return f"lacks {', '.join(lacking)}"
    damage = next((wrong for name, known in sums.items() if (wrong := _find_damage(path / name, *known))), None)
    return damage or _find_nonsense(path, step)


def _find_nonsense(path: Path, step: int) -> str | None:
    """Checks the files that record the progress of the run, which may be wrong even under a valid seal."""
    try:
        saved = read_json(path / STATE, dict[str, Any], what="a trainer's state", remedy="")
        state = check_value(saved, _State, where=str(path / STATE), remedy="")
        read_json(path / name_progress(0), _Progress, what="a run's progress", remedy="")
    except DpotoolError as error:
        return f"has nonsense in {str(error).removeprefix(f'{path}{os.sep}').removesuffix('.')}"
    unknown = saved.keys() - {each.name for each in fields(TrainerState)}
    if unknown:
        return f"has a {STATE} with {min(unknown)[:40]!r}, which this version of transformers does not know"
    return None if state.global_step == step else f"has a {STATE} of step {state.global_step}"


def _find_damage(path: Path, n_bytes: int, sha256: str) -> str | None:
    try:
        about = path.stat()
        size = about.st_size
        if size != n_bytes or not stat.S_ISREG(about.st_mode):
            return f"has a damaged {path.name} ({size} bytes of {n_bytes})"
        return None if _hash_file(path) == sha256 else f"has a {path.name} that is not the one saved"
    except FileNotFoundError:
        return f"lacks {path.name}"
    except OSError as error:
        return f"has a {path.name} that cannot be read ({error.strerror})"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def staging(folder: Path, step: int, *, is_main: bool) -> Iterator[Path]:
    """Yields the folder to write a checkpoint into; it is gone after the block, unless `publish` gave it its name.

    Raises DpotoolError, one line, where the disk is full or a file may not grow so large.
    """
    place = folder / f"checkpoint-{step}.saving"
    if is_main:  # and no other process, which may be there later, when this one is saving
        shutil.rmtree(place, ignore_errors=True)
    try:
        yield place
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_main:
            shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        usable = next((path.name for path in list_checkpoints(folder) if (path / SEAL).exists()), None)
        rest = f"{usable}, saved before, is whole" if usable else "no checkpoint had been saved before"
        raise DpotoolError(
            f"the checkpoint of step {step} cannot be saved ({_name_reason(error)}); {rest}",
            where=str(folder),
            remedy="Free space there and continue with --resume",
        ) from error
    finally:
        if is_main:
            shutil.rmtree(place, ignore_errors=True)


def publish(place: Path, run: str) -> Path:
    """Forces a written checkpoint to disk, seals it and gives it its name; an older one of that name makes room."""
    step = int(place.name.removesuffix(".saving").rpartition("-")[2])
    share_weights(place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    sums = {}
    for path in files:
        _force_to_disk(path)
        sums[str(path.relative_to(place))] = {"bytes": path.stat().st_size, "sha256": _hash_file(path)}
    write_json(place / SEAL, {"step": step, "run": run, "files": sums})
    target = place.with_name(f"checkpoint-{step}")
    with deferred():
        old = target.with_name(f".tmp-{secrets.token_hex(6)}")
        if target.exists() or target.is_symlink():
            target.rename(old)
        place.rename(target)
        _force_to_disk(target.parent)
    if old.is_symlink():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)
    return target


def remove_unfinished(folder: Path) -> None:
    """Removes the unfinished files and checkpoints of a killed process. The caller must hold the folder's lock."""
    for path in [*folder.glob("checkpoint-*.saving"), *folder.glob(".tmp-*"), *folder.glob(".saving")]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def rotate(folder: Path, n_kept: int | None, kept_steps: frozenset[int] = frozenset()) -> None:
    """Removes all but the newest checkpoints and those of `kept_steps`."""
    passing = [path for path in list_checkpoints(folder) if read_step(path) not in kept_steps]
    for path in passing[n_kept:] if n_kept else []:
        shutil.rmtree(path, ignore_errors=True)


def slim(checkpoint: Path) -> None:
    """Removes from a finished run's checkpoint what only resuming needs; weights and tokenizer stay."""
    for pattern in (SEAL, "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "progress*.json"):
        for path in checkpoint.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def read_progress(path: Path, process: int) -> dict[str, Any]:
    """Returns what a process had counted and summed up when a checkpoint was saved.

    Raises:
        DpotoolError: the checkpoint was saved by another number of processes, or is damaged.
    """
    place = path / name_progress(process)
    if not place.is_file():
        raise DpotoolError(
            "was saved by another number of processes",
            where=str(path),
            remedy="Continue with as many processes as the run began with",
        )
    remedy = "Delete this checkpoint: --resume then goes on from the one before"
    return to_builtins(read_json(place, _Progress, what="a run's progress", remedy=remedy))


def name_progress(process: int) -> str:
    return f"progress-{process}.json" if process else "progress.json"


def _name_reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror or error)
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "inline_container" in lines[0]:  # torch.save tells where in its own source it failed, and not why
        return "a file cannot be written to its end; the disk may be full"
    return lines[0].removeprefix("Error while serializing: ").removeprefix("I/O error: ")[:200]


def _force_to_disk(path: Path) -> None:
    with suppress(OSError):  # some file systems cannot, folders least of all
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
