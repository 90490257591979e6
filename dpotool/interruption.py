"""What SIGINT, SIGTERM and SIGHUP do to a command: the same at every moment, and what was computed is saved.

Until a command has begun to work there is nothing to keep, and it ends at once with exit code 130, in the middle of an
import too, where an exception might be swallowed or come out as another one. Once it has begun, a signal raises
KeyboardInterrupt; whoever computes keeps what there is on the way out. Imports nothing heavy: it comes first of all.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

EXIT_CODE = 130
SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Ctrl-C; how clusters and containers stop a job; the terminal was closed."""
_SECONDS_UNTIL_AGAIN = 0.05
_PR_SET_PDEATHSIG = 1

Handler = Callable[[int, FrameType | None], Any]


@dataclass(slots=True)
class _State:
    is_working: bool = False
    was_asked: bool = False
    n_deferring: int = 0
    waiting: int | None = None
    """The signal that came while the block of `deferred` ran."""


_state = _State()


def install() -> dict[signal.Signals, Any]:
    """Takes the signals over and returns the handlers before; nothing outside the main thread, where that is no use.

    A signal that is ignored, as `nohup` ignores SIGHUP, stays ignored.
    """
    return replace_handlers(_handle)


def replace_handlers(handler: Handler) -> dict[signal.Signals, Any]:
    """Gives every signal that is not ignored to a handler and returns the handlers before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: kept for number, kept in before.items() if kept not in (signal.SIG_IGN, None)}
    with suppress(ValueError):  # not the main thread
        for number in before:
            signal.signal(number, handler)
        return before
    return {}


def restore_handlers(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def catching() -> Iterator[None]:
    """Takes the signals over while a command runs; nothing of it has begun yet."""
    global _state
    kept, _state = _state, _State()
    before, kept_hook = install(), sys.unraisablehook
    sys.unraisablehook = _raise_again(kept_hook)
    try:
        yield
    finally:
        _state, sys.unraisablehook = kept, kept_hook
        restore_handlers(before)


def begin_work() -> None:
    """Marks that there may be work to save from now on: a signal raises KeyboardInterrupt."""
    _state.is_working = True


def was_asked_to_stop() -> bool:
    """Whether a signal has come since the command began, whatever became of the exception."""
    return _state.was_asked


@contextmanager
def deferred() -> Iterator[None]:
    """Lets a short block that must not end halfway run to its end; a signal that came meanwhile is raised then."""
    _state.n_deferring += 1
    try:
        yield
    finally:
        _state.n_deferring -= 1
        if _state.waiting is not None and not _state.n_deferring:
            _state.waiting = None
            raise KeyboardInterrupt


def interrupt(number: int) -> None:
    """Raises KeyboardInterrupt, after the block of `deferred` where one runs."""
    _state.was_asked = True
    if _state.n_deferring:
        _state.waiting = number
        return
    raise KeyboardInterrupt


def _handle(number: int, _frame: FrameType | None) -> None:
    if not _state.is_working:
        _leave()
    interrupt(number)


def _leave() -> None:
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(EXIT_CODE)


def _raise_again(usual: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a hook for exceptions that Python cannot raise, such as in `__del__`: an interruption comes again."""

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type or Exception, KeyboardInterrupt):
            usual(unraisable)
            return
        again = threading.Timer(_SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()

    return hook


def end_with_parent(parent: int) -> None:
    """Lets this process end at once when the one that started it does, even by a kill."""
    with suppress(Exception):  # Linux has it in its kernel
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def leave() -> None:
        os._exit(EXIT_CODE)

    threading.Thread(target=watch_parent, args=(parent, leave), daemon=True).start()


def watch_parent(parent: int, then: Callable[[], Any], seconds_between_looks: float = 0.5) -> None:
    """Calls a function when this process is no longer a child of `parent`."""
    while os.getppid() == parent:
        time.sleep(seconds_between_looks)
    then()
