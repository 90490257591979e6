"""Opening what `--data` names: a file, a folder written by `datasets.save_to_disk`, a hub id or `builtin:demo`.

An opened source is its splits by name, each a function that yields its rows; nothing is read before it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpotool.data.columns import select_columns
from dpotool.data.files import COMPRESSED, SUFFIXES, SourceRow, inner_suffix, read_file
from dpotool.data.splits import LONE_SPLIT, SHARD, is_test_name, name_lone_split
from dpotool.errors import DpotoolError, expand_home, suggest_nearest
from dpotool.hub import is_meant_as_path, reach_hub

if TYPE_CHECKING:
    import datasets

BUILTINS = ("builtin:demo",)

_ARROW_MARKERS = ("dataset_dict.json", "dataset_info.json", "state.json")
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
_BATCH_ROWS = 1024
_ROW_FILES = frozenset((".parquet", ".jsonl", ".csv"))  # a .json beside them may say something about them


@dataclass(frozen=True, slots=True)
class Origin:
    """An opened source."""

    data: str
    """What the user named."""
    name: str
    """Short name for files and titles."""
    splits: dict[str, Callable[[], Iterator[SourceRow]]]


def open_origin(data: str) -> Origin:
    """Opens a source, by the network where it is a hub id.

    Raises:
        DpotoolError: no such file, folder, built-in or hub id, or one that cannot be read.
    """
    if not data.strip():
        raise DpotoolError(
            "is empty",
            where="--data",
            expected="a file, a folder, a hub id or builtin:demo",
            remedy="Check the variable",
        )
    if data.startswith("builtin:"):
        return _open_builtin(data)
    path = expand_home(data)
    if path.is_dir():
        return _open_folder(data, path)
    if path.exists():
        stem = _stem(path)
        return Origin(data, stem, {name_lone_split(stem): partial(read_file, path)})
    found = _HUB_ID.fullmatch(data)
    if found is None or path.suffix in SUFFIXES or is_meant_as_path(found["id"]):
        raise DpotoolError(
            f"no file or folder '{data}'",
            expected=f"a path, a hub id as ORG/NAME, or {' or '.join(BUILTINS)}",
            remedy="Check --data",
        )
    return _open_hub(data, found["id"], found["config"])


def _open_builtin(data: str) -> Origin:
    if data not in BUILTINS:
        raise DpotoolError(f"no built-in data {data!r}", remedy=suggest_nearest(data, BUILTINS))
    from dpotool.data.demo import SPLITS

    return Origin(data, "demo", {split: partial(_read_demo, split) for split in SPLITS})


def _read_demo(split: str) -> Iterator[SourceRow]:
    from dpotool.data.demo import generate_demo_rows

    for row_id, value in enumerate(generate_demo_rows(split)):
        yield SourceRow(row_id, dict(value))


def _open_folder(data: str, path: Path) -> Origin:
    if not any((path / marker).is_file() for marker in _ARROW_MARKERS):
        shards = _find_shards(path)
        if shards:
            return Origin(data, path.name, {split: partial(_read_shards, files) for split, files in shards.items()})
        files = sorted(file.name for file in path.iterdir() if inner_suffix(file) in SUFFIXES)
        raise DpotoolError(
            "is a folder, but neither one written by datasets.save_to_disk nor one of files named by their splits",
            where=data,
            remedy=f"Name one of its files: {', '.join(files[:5])}" if files else None,
        )
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # a half-written folder fails in as many ways as datasets has readers
        raise DpotoolError(
            f"cannot be read as a saved dataset: {_first_line(error)}",
            where=data,
            remedy="Write it again with save_to_disk",
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return Origin(data, path.name, {str(name): partial(_read_dataset, loaded[name]) for name in loaded})
    split = str(loaded.split) if loaded.split else name_lone_split(path.name)
    return Origin(data, path.name, {split: partial(_read_dataset, loaded)})


def _stem(path: Path) -> str:
    """Returns 'pairs' for pairs.jsonl and for pairs.jsonl.gz."""
    name = Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem
    return name.encode("utf-8", "backslashreplace").decode()  # bytes of a name that are no UTF-8 are written out


def _find_shards(folder: Path) -> dict[str, list[Path]]:
    """Returns the files of each split, as the hub lays them out: in the folder or in its `data`, named by their split.

    Empty where a file says no split, as long as it is not the shard of something.
    """
    splits: dict[str, list[Path]] = {}
    for place in (folder, folder / "data"):
        files = sorted(file for file in place.glob("*") if file.is_file() and inner_suffix(file) in _ROW_FILES)
        for file in files:
            stem = _stem(file)
            name = SHARD.sub("", stem)
            is_named = name_lone_split(stem) != LONE_SPLIT or is_test_name(name) or name.startswith("train")
            if not is_named and name == stem:
                return {}
            splits.setdefault(name, []).append(file)
        if splits:
            return splits
    return {}


def _read_shards(files: Sequence[Path]) -> Iterator[SourceRow]:
    """Yields the rows of several files as those of one, numbered through."""
    for row_id, row in enumerate(chain.from_iterable(map(read_file, files))):
        yield replace(row, row_id=row_id, line=None)


def _open_hub(data: str, hub_id: str, config: str | None) -> Origin:
    import datasets

    reach_hub()

    def read(split: str) -> Iterator[SourceRow]:
        try:
            loaded = datasets.load_dataset(hub_id, config, split=split)
        except Exception as error:
            raise _hub_error(data, error) from error
        yield from _read_dataset(loaded)

    try:
        names = datasets.get_dataset_split_names(hub_id, config)
    except Exception as error:  # network, permission, unknown id, missing config: the hub's clients raise all kinds
        raise _hub_error(data, error) from error
    return Origin(data, hub_id.rpartition("/")[2], {name: partial(read, name) for name in names})


def _hub_error(data: str, error: Exception) -> DpotoolError:
    return DpotoolError(
        f"is no local file, and cannot be loaded from the hub: {_first_line(error)}",
        where=data,
        remedy="Check the name and the connection; a dataset with several configurations is named as ORG/NAME:CONFIG",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_dataset(dataset: datasets.Dataset) -> Iterator[SourceRow]:
    dataset = dataset.select_columns(select_columns(dataset.column_names)).with_format(None)
    for start in range(0, len(dataset), _BATCH_ROWS):
        columns: dict[str, list[Any]] = dataset[start : start + _BATCH_ROWS]
        for offset, cells in enumerate(zip(*columns.values(), strict=True)):
            yield SourceRow(start + offset, dict(zip(columns, cells, strict=True)))
