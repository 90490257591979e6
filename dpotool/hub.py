"""Distinguishes a mistyped path from a hub id, and tells whether the hub answers before a library retries."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from dpotool.errors import DpotoolError, expand_home, refuse_endless

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_PATIENCE = 6.0
"""Seconds to wait for the hub's first answer."""


def is_meant_as_path(name: str) -> bool:
    """Tells whether a name must be a path: it exists, is no valid hub id, or is below `runs/`."""
    path = expand_home(name)
    if path.exists() or not _HUB_ID.fullmatch(name):
        return True
    folder = path.parent
    holds_runs = folder.name == "runs" or (folder / "run.yaml").is_file() or any(folder.glob("*/run.yaml"))
    return folder != Path() and holds_runs


@functools.cache
def reach_hub() -> bool:
    """Tells whether the hub answers: one request per process, without retries; False if it is set offline.

    A hub that does not answer is set offline for this process: what it has left in the cache is all there is.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # no name service, no route, a proxy's refusal, offline mode: the client raises all kinds
        constants.HF_HUB_OFFLINE = True
        return False
    return True


def check_name(name: str) -> None:
    """Asks the hub whether it is there, where a name needs it.

    Raises:
        DpotoolError: the name is a path, and nothing is there.
    """
    if not is_meant_as_path(name):
        reach_hub()
    elif not expand_home(name).exists():
        raise DpotoolError("no such folder", where=name, remedy="Check the path; a model on the hub is ORG/NAME")


def refuse_pointer(path: Path) -> None:
    """Raises a `DpotoolError` for a file that Git LFS has left a pointer of, in place of what it points to.

    Raises OSError for a pipe or a device.
    """
    refuse_endless(path)
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return
    except OSError as error:
        reason = error.strerror or str(error)
        raise DpotoolError(f"cannot be read ({reason})", where=str(path), remedy="Check who may read it") from None
    if is_pointer:
        raise DpotoolError(
            "is a Git LFS pointer, not the file itself",
            where=str(path),
            remedy="Fetch it with: git lfs pull (in that folder), or download the repository with huggingface-cli",
        )


_POINTER = b"version https://git-lfs"
