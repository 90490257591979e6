"""The one exception a user is meant to see: a single line that says what, where, got, expected and the remedy."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path


class DpotoolError(Exception):
    """A user's or data error. The command line prints it as one line and exits with code 1.

    Args:
        what: what is wrong, as a clause ("'rejected' is empty").
        where: file and line, option or model it was found in.
        expected, got: what was needed and what stood there.
        remedy: what to do about it, as a sentence without its full stop.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> None:
        line = f"{where}: {what}" if where else what
        if expected is not None:
            line += f"; expected {expected}"
        if got is not None:
            line += f"{',' if expected is not None else ';'} got {got}"
        if remedy is not None:
            line += f". {remedy}"
        super().__init__(" ".join(line.split()))


def refuse_endless(path: Path) -> Path:
    """Returns the path of a file that is about to be read; raises OSError for a pipe or a device, which may not end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
    return path


def expand_home(path: str | Path, remedy: str = "Write the path out") -> Path:
    """Returns a path with the folder that a `~` stands for; raises DpotoolError where the system does not know it."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DpotoolError("begins in a home folder that is not known here", where=str(path), remedy=remedy) from None


def find_place(path: str | Path) -> Path:
    """Returns where a path leads, links followed; of a circle of links, which `Path.resolve` raises for, some path."""
    return Path(os.path.realpath(path))


def suggest_nearest(name: str, known: Iterable[str]) -> str:
    """Returns "Did you mean 'shift'? Known: dpo, ipo, shift" for a name that is not among the known ones."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}Known: {', '.join(names)}"
