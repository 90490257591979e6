"""What installed packages add to dpotool: losses, measures and pictures that they name as entry points."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from dpotool.errors import DpotoolError


@cache
def register_installed(group: str, register: Callable[[Any], object]) -> None:
    """Registers every entry point of a group, such as `dpotool.losses`, once in a process.

    Raises:
        DpotoolError: an entry cannot be imported, or its name is taken; the message says which package it is from.
    """
    from importlib.metadata import entry_points  # takes tens of milliseconds, which only some commands need

    for entry in entry_points(group=group):
        try:
            register(entry.load())
        except Exception as error:
            package = "an installed package" if entry.dist is None else f"the installed package {entry.dist.name}"
            raise DpotoolError(
                f"the entry point {entry.name!r} of {package} cannot be used: {error}",
                where=group,
                remedy="Update that package or uninstall it",
            ) from error
