"""A run folder on disk: where everything is in it, its manifest, its metrics, and finding the newest ones.

run.yaml                          the manifest: settings, seed, versions, fingerprints, hardware, status
metrics.jsonl                     a row per logged step
scores/<data>-<split>.parquet     a row per pair, with .summary.json and .tokens.parquet beside it; what is scored
                                  otherwise than the run's own way is <data>-<split>-<how>.parquet
theory/<data>-<split>.parquet     a row per pair, with .summary.json beside it
diagnosis/<data>-<split>.parquet  a row per pair, with .summary.json and .tokens.parquet beside it
predictions/<data>-<split>.parquet  likewise
imported/<data>-<split>.csv       a row per pair of what another tool says of it
answers/<data>.jsonl              what the model answered, a line per question and sample
judgments/<data>-vs-<baseline>-<judge>.parquet  a row per verdict, with .summary.json and the replies beside it
plots/                            pictures
controls/                         of a DPO run: folders with scores of it scaled back, a folder for each scale
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dpotool.errors import DpotoolError, find_place
from dpotool.runs.atomic import to_json_plain, write_text, write_yaml, writing_to
from dpotool.runs.checked import parse_json, read_bytes
from dpotool.runs.manifest import read_manifest
from dpotool.runs.parquet import read_time
from dpotool.runs.schemas import TABLES
from dpotool.settings.fields import Range
from dpotool.wording import count

_STEPS = Range(0, 2**53)
_LONGEST_NAME = 180
_NO_RUNS_INSIDE = re.compile(rf"checkpoint-\d+|controls|plots|{'|'.join(kind.folder for kind in TABLES.values())}|\..*")


@dataclass(frozen=True)
class RunFolder:
    """One run folder; making this object neither makes nor checks the folder."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def of_table(cls, table: Path) -> RunFolder:
        """Returns the run folder of a table: the one above its kind's folder, unless that one is a run itself."""
        return cls(table.parent if (table.parent / "run.yaml").is_file() else table.parent.parent)

    @property
    def name(self) -> str:
        """The folder's name; a checkpoint's has that of the run before it: my-run/checkpoint-20.

        Bytes that are no UTF-8 are written out: neither pictures nor tables take them.
        """
        path = find_place(self.path)
        name = f"{path.parent.name}/{path.name}" if is_checkpoint_name(path.name) else path.name
        return name.encode("utf-8", "backslashreplace").decode()

    @property
    def holder(self) -> RunFolder | None:
        """The run that this folder is a checkpoint of; None for a run itself and for any other folder."""
        path = find_place(self.path)
        parent = RunFolder(path.parent)
        return parent if is_checkpoint_name(path.name) and parent.manifest_path.is_file() else None

    def remove_if_empty(self) -> None:
        """Takes the folder away, and runs/ above it, where nothing is in it: what a run that never began leaves."""
        with suppress(OSError):
            self.path.rmdir()
            if self.path.parent.name == "runs":
                self.path.parent.rmdir()

    @property
    def manifest_path(self) -> Path:
        return self.path / "run.yaml"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def plots_folder(self) -> Path:
        return self.path / "plots"

    def table_path(self, kind: str, *parts: str, format: str = "parquet", variant: str = "") -> Path:  # noqa: A002
        """Returns the path of a table, by its kind (a key of `schemas.TABLES`) and what it is of.

        Args:
            parts: data set and split; of judgments the data, the baseline and the judge.
            variant: what differs from the run's recorded settings, e.g. limit-50.
        """
        about = TABLES[kind]
        name = shorten_name("-".join(_slug(part) for part in (*parts, variant) if part))
        return self._folder_of(kind) / ".".join(filter(None, (name, about.suffix, format)))

    def _folder_of(self, kind: str) -> Path:
        """Where tables of a kind lie; a folder that has that name itself, and holds no training, needs none inside."""
        inside = self.path / TABLES[kind].folder
        others = (inside, self.metrics_path, self.path / "runs.csv")
        return inside if self.path.name != inside.name or any(path.exists() for path in others) else self.path

    def list_tables(self, kind: str) -> list[Path]:
        """Returns the folder's tables of a kind (a key of `schemas.TABLES`), newest first."""
        about = TABLES[kind]
        others = {each.suffix for each in TABLES.values() if each.folder == about.folder} - {about.suffix}
        folder = self._folder_of(kind)
        found = [
            file
            for file in (folder.iterdir() if folder.is_dir() else ())
            if file.suffix[1:] in about.formats
            and not file.name.startswith(".")
            and file.stem.endswith(about.suffix and f".{about.suffix}")
            and not any(other and file.stem.endswith(f".{other}") for other in others)
        ]
        if len(found) < 2:
            return found
        return sorted(found, key=lambda file: (read_time(file), file.name), reverse=True)

    def read_manifest(self) -> dict[str, Any]:
        """Returns run.yaml. Raises DpotoolError, one line, when it is missing, unreadable or half-written."""
        return read_manifest(self.manifest_path)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes run.yaml atomically; `collect_manifest` makes one."""
        write_yaml(self.manifest_path, manifest)

    def update_manifest(self, **changes: Any) -> dict[str, Any]:
        """Sets keys of run.yaml, for example `status="finished"`, and returns the whole manifest."""
        manifest = self.read_manifest() | changes
        self.write_manifest(manifest)
        return manifest

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a row to metrics.jsonl and forces it to disk. A line torn by an earlier crash is closed off first."""
        line = (json.dumps(to_json_plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode()
        with writing_to(self.metrics_path):
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.metrics_path, "ab+", opener=_open_no_link) as file:
                file.write(line if _ends_in_newline(file) else b"\n" + line)
                file.flush()
                os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl in order, numbers by name; lines torn by a crash, or of anything else, are
        left out, counted in a warning.

        Raises DpotoolError when there is no metrics.jsonl.
        """
        try:
            lines = read_bytes(self.metrics_path).decode("utf-8", errors="replace").split("\n")
        except OSError as error:
            remedy = "Only runs of `dpotool train` log metrics"
            raise DpotoolError("cannot be read", where=str(self.metrics_path), remedy=remedy) from error
        rows = [_parse_row(line) for line in lines if line.strip()]
        n_torn = sum(row is None for row in rows)
        if n_torn:
            warnings.warn(f"{self.metrics_path}: {count(n_torn, 'half-written line')} left out", stacklevel=2)
        return [row for row in rows if row is not None]

    def truncate_metrics(self, after_step: int) -> None:
        """Drops the rows logged after a step, so that a run resumed from that step does not log them twice.

        A closing row (`train_loss`) is dropped too, as the resumed run did not end there.
        """
        if self.metrics_path.exists():
            rows = [row for row in self.read_metrics() if _is_at_most(row, after_step) and "train_loss" not in row]
            write_text(self.metrics_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def is_checkpoint_name(name: str) -> bool:
    """Whether a folder of that name is one of the checkpoints that training leaves in its run folder."""
    return re.fullmatch(r"checkpoint-\d+", name) is not None


def list_runs(root: str | Path = "runs", kind: str | None = None) -> list[RunFolder]:
    """Returns the run folders under `root` (itself and a sweep's cells included), newest first.

    Folders whose run.yaml cannot be read are left out with a warning that names them.
    """
    found = []
    for run in _walk_runs(Path(root)):
        try:
            manifest = run.read_manifest()
        except DpotoolError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            continue
        if kind is None or manifest["kind"] == kind:
            found.append((str(manifest["created"]), str(run.path), run))
    return [run for _, _, run in sorted(found, key=lambda item: item[:2], reverse=True)]


def newest_run(root: str | Path = "runs", kind: str = "train") -> RunFolder:
    """Returns the newest run of a kind under `root`. Raises DpotoolError when there is none."""
    runs = list_runs(root, kind)
    if not runs:
        raise DpotoolError(
            f"no {kind} run here", where=str(root), remedy="Run `dpotool train` first, or name a run folder"
        )
    return runs[0]


def _walk_runs(root: Path) -> Iterator[RunFolder]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _NO_RUNS_INSIDE.fullmatch(name)]
        if "run.yaml" in files:
            yield RunFolder(Path(folder))


def _is_at_most(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row was logged at a step or before it."""
    return bool(row.get("step", 0) <= step)


def shorten_name(name: str) -> str:
    """Returns a name that leaves room, in the 255 bytes of a file's name, for endings and a number behind it."""
    if len(os.fsencode(name)) <= _LONGEST_NAME:
        return name
    start = os.fsencode(name)[: _LONGEST_NAME - 9].decode("utf-8", "ignore")
    return f"{start}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _slug(name: str) -> str:
    """A name as part of a file name: whatever is not a letter, digit, dot, dash or underscore becomes a dash."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def _open_no_link(path: str, flags: int) -> int:
    """Opens a file, and refuses a link that lies in its place: nothing is written elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _ends_in_newline(file: BinaryIO) -> bool:
    """Whether a file open for appending and reading is empty or ends a line."""
    if not file.tell():
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parse_row(line: str) -> dict[str, Any] | None:
    """Returns what a run logged at a step: numbers, or nothing where one was not finite."""
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or any(isinstance(v, str | list | dict) for v in row.values()):
        return None
    return row if row.get("step", 0) in _STEPS else None
