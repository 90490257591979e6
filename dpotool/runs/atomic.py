"""Atomic writes: a file is either as it was or complete, never half-written, whatever happens in between.

Each write goes to a temporary file in the same folder, is forced to disk and then renamed over the target. A folder
that is full, read-only or not a folder becomes one line for the user; what stood there before is unchanged. Values are
first converted to what JSON and YAML can express (`to_plain`): numpy scalars, paths, dataclasses, enums to plain ones.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from dpotool.errors import DpotoolError
from dpotool.interruption import begin_work

if TYPE_CHECKING:
    import pandas as pd

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; when the block ends well it is forced to disk and renamed to `path`.

    The folder is made if it is missing. When the block fails, the temporary file is removed and `path` is untouched.
    Raises DpotoolError when the folder is full, read-only or a file.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{secrets.token_hex(6)}{path.suffix}")
    begin_work()
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _force_to_disk(temporary)
            os.replace(temporary, path)  # noqa: PTH105 (named for what it does: atomic within one file system)
            _force_folder_to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Writes `data` to `path` atomically; returns the path. Raises DpotoolError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Writes `text` as UTF-8, line ends as they are; what is no UTF-8, as in a file's name, as an escape of JSON's."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> Path:
    """Writes strict JSON, indented; NaN and infinities become null."""
    return write_text(path, json.dumps(to_json_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_yaml(path: str | Path, value: Any) -> Path:
    """Writes YAML that `yaml.safe_load` reads back to the same value, keys in the order given."""
    return write_text(path, yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=120))


def ensure_writable(folder: str | Path) -> Path:
    """Makes `folder` and proves that a file can be written there; call it before hours of work, not after.

    Returns the folder. Raises DpotoolError when it is full, read-only or a file.
    """
    folder = Path(folder)
    probe = folder / f".tmp-{secrets.token_hex(6)}"
    begin_work()
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(bytes(4096))
            _force_to_disk(probe)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
    return folder


@contextlib.contextmanager
def claiming(folder: str | Path) -> Iterator[Path]:
    """Makes `folder` and proves that it can be written; when the block fails, what is empty is taken away again.

    Only folders made here are taken away. Raises DpotoolError as `ensure_writable`.
    """
    folder = Path(folder)
    with writing_to(folder):  # a name that is too long raises its error here
        made = [path for path in (folder, *folder.parents) if not path.exists()]
    ensure_writable(folder)
    try:
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):  # something was written into it, and stays
            for path in made:
                path.rmdir()
        raise


@contextlib.contextmanager
def writing_to(path: str | Path) -> Iterator[None]:
    """Turns an OSError of the block, which must do nothing but write `path`, into one line for the user.

    Raises:
        DpotoolError: the path cannot be written.
    """
    if "\0" in str(path):
        raise DpotoolError("is no path", where=repr(str(path)), remedy="Choose another folder")
    try:
        yield
    except OSError as error:
        what, remedy = _explain(error)
        raise DpotoolError(what, where=str(path), remedy=remedy) from error


def share_weights(folder: Path) -> None:
    """Lets those read a saved model's weights who may read the rest: safetensors writes them for their owner alone."""
    others = next(folder.glob("*config.json"), None)
    if others is not None:
        for weights in folder.glob("*.safetensors"):
            shutil.copymode(others, weights)


def _explain(error: OSError) -> tuple[str, str]:
    unchanged = "; what stood there before is unchanged"
    if error.errno in _FULL:
        return "no space left to write here", f"Free some space or choose another folder{unchanged}"
    if error.errno in _FORBIDDEN:
        return "cannot be written, the folder is read-only", f"Choose a folder you may write to{unchanged}"
    if error.errno == errno.ENAMETOOLONG:
        return "cannot be written, the name is too long", "Choose a shorter one"
    if error.errno in _NOT_A_FOLDER:
        return "cannot be written, a file stands where a folder is needed", "Choose another folder, or move that file"
    return f"cannot be written ({error.strerror or error})", f"Choose another folder{unchanged}"


def _force_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _force_folder_to_disk(folder: Path) -> None:
    """Makes the rename itself survive a power cut, on the file systems that can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def to_plain(value: Any) -> Any:
    """Returns `value` built of dict, list, str, bool, int, float and None alone.

    Raises TypeError for anything else: what cannot be written down must not slip into a manifest as its repr.
    """
    if isinstance(value, Enum):
        return to_plain(value.value)
    if value is None or type(value) in (str, bool, int, float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist())
    for kind in (str, int, float):  # subclasses of these, which YAML's safe writer refuses
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"cannot write a value of type {type(value).__name__}: {value!r}")


def to_json_plain(value: Any) -> Any:
    """Converts like `to_plain`, with NaN and infinities as None, as JSON has no such numbers."""
    plain = to_plain(value)
    if isinstance(plain, dict):
        return {key: to_json_plain(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [to_json_plain(item) for item in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def as_cell(value: Any) -> Any:
    """Returns a value for a CSV that people open: a text that would be run as a formula gets a ' before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def as_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a table whose texts are `as_cell`; numbers stay what they are, whole ones whole."""
    import pandas as pd  # everything that writes a file imports this module

    columns = {name: pd.Series([as_cell(value) for value in frame[name]], dtype=object) for name in frame}
    return pd.DataFrame({as_cell(name): column for name, column in columns.items()})
