"""What the cache holds: log-probabilities and gradient products by model and numeric types, and built-in models."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpotool.cache.parts import PRODUCTS, list_parts, read_parts
from dpotool.errors import DpotoolError, expand_home
from dpotool.runs.atomic import write_json
from dpotool.runs.checked import read_json
from dpotool.settings.shared import DEMO

DEMO_PREFIX = "demo-"
"""The built-in model lies in demo-<hash of what it is made of>."""
MADE = "made.json"
"""In it: the SHA-256 of every file as it was made; without it, it was not made to its end."""
MAKING_PREFIX = "tmp-demo-"
"""Beside it while it is made, or after that was killed."""
ABOUT = "about.json"
"""Beside a model's parts: which model it was. Its time of change is when the values were last used."""
SECOND = "-again"
"""Behind the key of a pair that was scored a second time, in other company: what the noise floor is made of."""
_STORE_NAME = re.compile(
    rf"(?P<fingerprint>[0-9a-f]{{16}})-(?P<types>\w+-\w+?)(?P<products>-{PRODUCTS}-[0-9a-f]{{8}})?"
)
_DEMO_NAME = re.compile(rf"{DEMO_PREFIX}(?P<fingerprint>[0-9a-f]{{12}})")


def cache_root() -> Path:
    """Returns $DPOTOOL_CACHE, else ~/.cache/dpotool."""
    return expand_home(
        os.environ.get("DPOTOOL_CACHE", "~/.cache/dpotool"), "Name a folder by the environment variable DPOTOOL_CACHE"
    )


def store_root() -> Path:
    """Returns the folder of log-probabilities, of policies too, one folder in it for each (model, numeric types).

    A release that changes what is computed for the same weights and tokens takes another name here.
    """
    return cache_root() / "reference"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of the cache."""

    kind: str
    """'log-probabilities', 'gradient products' or 'built-in model'."""
    models: tuple[str, ...]
    """Names or paths the model went by when values were written; the last one is the newest. Empty: not recorded."""
    fingerprint: str
    types: str
    """Numeric types: of the weights, then of mixed precision."""
    n_pairs: int | None
    n_files: int
    n_bytes: int
    last_used: datetime
    path: Path
    is_complete: bool = True
    """False for a built-in model whose making was cut off, which the next use makes anew."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"last_used": self.last_used.isoformat(timespec="seconds"), "path": str(self.path)}


@dataclass(frozen=True, slots=True)
class _About:
    """What about.json says of a model's stored values."""

    models: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def name_store(fingerprint: str, types: str, parameters: Collection[str] | None = None) -> str:
    """Returns the folder name of one model's values, under `store_root()`.

    Args:
        parameters: names of those whose gradient products the values are; without it they are log-probabilities.
    """
    name = f"{fingerprint}-{types}"
    if parameters is None:
        return name
    return f"{name}-{PRODUCTS}-{hashlib.sha256('|'.join(sorted(parameters)).encode()).hexdigest()[:8]}"


def record_use(folder: Path, model: str, versions: Mapping[str, str], *, is_written: bool) -> None:
    """Notes that a model's values were used just now and, where some were written, by which model under which versions.

    Raises:
        DpotoolError: the folder cannot be written.
    """
    about = read_about(folder)
    models = [name for name in about.get("models", []) if name != model] + [model]
    if is_written and (about.get("models"), about.get("versions")) != (models, dict(versions)):
        write_json(folder / ABOUT, {"models": models, "versions": dict(versions)})
        return
    with suppress(OSError):  # a cache that others own can be read all the same
        os.utime(folder / ABOUT)


def read_about(folder: Path) -> dict[str, Any]:
    """Returns what is recorded about a folder's model; empty where nothing is, or nothing that can be read."""
    path = folder / ABOUT
    if not path.is_file():
        return {}
    try:
        return asdict(read_json(path, _About, what="what is recorded of stored values", remedy="Delete it"))
    except DpotoolError:
        return {}


def list_entries() -> list[CacheEntry]:
    """Returns all that dpotool has in the cache, what was used last first; links and strangers' files are not its."""
    entries = [*_list_stores(), *_list_demos()]
    return sorted(entries, key=lambda entry: entry.last_used, reverse=True)


def _list_stores() -> Iterator[CacheEntry]:
    for folder, match in _matching_folders(store_root(), _STORE_NAME):
        files = list_own_files(folder)
        yield CacheEntry(
            kind="gradient products" if match["products"] else "log-probabilities",
            models=tuple(str(name) for name in read_about(folder).get("models", [])),
            fingerprint=match["fingerprint"],
            types=match["types"].removesuffix("-None"),
            n_pairs=sum(not key.endswith(SECOND) for key in read_parts(folder).values),
            n_files=len(list_parts(folder)),
            n_bytes=_sum_sizes(files),
            last_used=_newest(files, folder),
            path=folder,
        )


def _list_demos() -> Iterator[CacheEntry]:
    for folder, match in _matching_folders(cache_root(), _DEMO_NAME):
        if not any((folder / name).is_file() for name in (MADE, "run.yaml")):  # the second, before there was the first
            continue
        files = list_own_files(folder)
        yield CacheEntry(
            kind="built-in model",
            models=(DEMO,),
            fingerprint=match["fingerprint"],
            types="float32",
            n_pairs=None,
            n_files=len(files),
            n_bytes=_sum_sizes(files),
            last_used=_newest(files, folder),
            path=folder,
            is_complete=(folder / MADE).is_file(),
        )


def _matching_folders(root: Path, name: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    if not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        match = name.fullmatch(folder.name)
        if match and folder.is_dir() and not folder.is_symlink():
            yield folder, match


_MODEL_FILES = frozenset(
    (
        "chat_template.jinja", "config.json", "generation_config.json", "made.json", "metrics.jsonl",
        "model.safetensors", "run.yaml", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    )
)  # fmt: skip
_CHECKPOINT_FILES = _MODEL_FILES | {
    "optimizer.pt", "optimizer.bin", "rng_state.pth", "scheduler.pt", "trainer_state.json", "training_args.bin",
}  # fmt: skip
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{12}(\.\w+)?")


def list_own_files(folder: Path) -> list[Path]:
    """Returns the files in an entry's folder that dpotool wrote, known by their names; nothing else may be deleted."""
    if _DEMO_NAME.fullmatch(folder.name):
        own = [path for path in folder.iterdir() if path.name in _MODEL_FILES]
        for checkpoint in folder.glob("checkpoint-*"):
            if checkpoint.is_dir() and not checkpoint.is_symlink():
                own += [path for path in checkpoint.iterdir() if path.name in _CHECKPOINT_FILES]
    else:
        own = [*list_parts(folder), *(path for path in [folder / ABOUT] if path.exists())]
    own += [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]
    return sorted(path for path in own if path.is_file() and not path.is_symlink())


def _sum_sizes(paths: list[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(FileNotFoundError):  # merged meanwhile
            total += path.stat().st_size
    return total


def _newest(paths: list[Path], folder: Path) -> datetime:
    times = [folder.stat().st_mtime] if not paths else []
    for path in paths:
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return datetime.fromtimestamp(max(times, default=0.0), UTC)
