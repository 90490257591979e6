"""One command at a time in one folder: a lock that dies with its process, and that says whose it is.

The lock is the operating system's (flock), on a file `.lock` in the folder, so that neither a kill nor a power cut
leaves it held. The file names the holder for others to read; it is gone when the work is done, and one that a kill left
there means nothing. Within one process the lock may be taken again: a sweep holds a cell's folder while it trains it.
"""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file in use cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]

from filelock import FileLock, Timeout

from dpotool.errors import DpotoolError, find_place
from dpotool.interruption import begin_work
from dpotool.runs import atomic
from dpotool.runs.checked import load_json

LOCK_NAME = ".lock"
_SECONDS_BETWEEN_TRIES = 0.1

_held: Counter[Path] = Counter()
"""How many times this process has taken each lock."""


class InUseError(DpotoolError):
    """Another process is at work in a folder."""


@contextmanager
def holding(
    folder: str | Path,
    command: str,
    *,
    waits: bool = False,
    but_not_for: str | None = None,
    in_every_process: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Holds a folder while the block runs; the folder is made if it is missing. Of several processes the first holds.

    Args:
        command: what is done there, for others to read.
        waits: for a holder to be done, saying so once through `note`; otherwise a held folder is refused.
        but_not_for: a command that is not waited for.
        in_every_process: of a launcher, one after another.

    Raises:
        InUseError: another process holds it; the message names the command, the process and its machine.
        DpotoolError: the folder cannot be written.
    """
    if int(os.environ.get("RANK", "0")) != 0 and not in_every_process:  # set by every launcher
        yield
        return
    if os.path.islink(folder) and not os.path.exists(folder):  # noqa: PTH110, PTH114 (which raise for odd names)
        raise DpotoolError("is a link that leads nowhere", where=str(folder), remedy="Choose another folder")
    path = find_place(folder) / LOCK_NAME
    lock = None if _held[path] else _acquire(path, command, note if waits else None, but_not_for)
    _held[path] += 1
    try:
        yield
    finally:
        _held[path] -= 1
        if lock is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # while it is held: who waits for this file sees that it is gone
            lock.release()


@contextmanager
def claiming(folder: str | Path, command: str, note: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Holds a folder that work writes to, having waited for others like it, and proves that it can be written.

    A training is not waited for. When the block fails, folders made here that are empty are taken away again. Raises as
    `holding`.
    """
    with atomic.claiming(folder), holding(folder, command, waits=True, but_not_for="train", note=note):
        yield


@contextmanager
def claiming_all(folders: Iterable[Path], command: str, note: Callable[[str], None]) -> Iterator[None]:
    """Holds several folders as `claiming` does, before hours of work on the first of them.

    They are taken in one order, so that no two commands wait for each other.
    """
    with ExitStack() as claims:
        for folder in sorted(folders, key=find_place):
            claims.enter_context(claiming(folder, command, note))
        yield


def _acquire(path: Path, command: str, note: Callable[[str], None] | None, but_not_for: str | None) -> FileLock:
    begin_work()
    with atomic.writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = describe_holder(path)
            if note is None or holder.partition(",")[0] == but_not_for:
                raise _in_use(path, holder) from None
            note(f"{path.parent}: waiting for another command that is at work here ({holder})")
            lock.acquire(poll_interval=_SECONDS_BETWEEN_TRIES)
        about = {
            "command": command,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        with suppress(OSError):  # a full disk: the lock holds all the same, without a name
            path.write_text(json.dumps(about), encoding="utf-8")
    return lock


def refuse_held(folder: Path) -> None:
    """Raises InUseError where another process holds a folder; changes nothing there."""
    path = find_place(folder) / LOCK_NAME
    if not path.is_file() or _held[path]:
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _in_use(path, describe_holder(path)) from None
    except OSError:
        return
    lock.release()


_used: dict[Path, int] = {}
"""Files that this process marked as used, with the descriptor that holds the mark."""


def mark_used(path: Path) -> bool:
    """Marks a file as in use until this process ends, as any number of processes may; False where it is gone."""
    if path in _used or fcntl is None:
        return path.is_file()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    with suppress(OSError):  # a file system that knows no such marks
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if path.is_file() and os.path.samestat(path.stat(), os.fstat(descriptor)):
        _used[path] = descriptor
        return True
    os.close(descriptor)
    return False


@contextmanager
def keeping_users_out(path: Path) -> Iterator[bool]:
    """Yields whether no other process uses a file (`mark_used`); if so, none begins to before the block is left."""
    if (own := _used.pop(path, None)) is not None:
        os.close(own)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield True
        return
    try:
        is_free = True
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_free = False
            except OSError:
                pass
        yield is_free
    finally:
        os.close(descriptor)


def _in_use(path: Path, holder: str) -> InUseError:
    return InUseError(
        f"another command is at work in this folder ({holder})",
        where=str(path.parent),
        remedy="Wait until it is done, stop it, or choose another folder",
    )


def describe_holder(path: Path) -> str:
    """Returns who holds a lock, as far as its file says: 'train, process 4711 on node-3, since 2026-11-21 10:15:00'."""
    try:
        about = load_json(path)
        return f"{about['command']}, process {about['pid']} on {about['host']}, since {about['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not said which"
