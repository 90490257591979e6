"""From a file another tool wrote to a run folder that `plot`, `compare` and `report` read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.scored_run import NOT_FINITE, ScoredRun, derive_rewards
from dpotool.compare.summaries import summarize_scores
from dpotool.compare.verdict import judge_displacement
from dpotool.errors import DpotoolError, find_place, suggest_nearest
from dpotool.foreign.logs import read_history, read_tensorboard, read_trackio, read_trainer_log, read_trainer_state
from dpotool.foreign.tables import read_reward_bench, read_tensors
from dpotool.losses.options import check_told_lambda
from dpotool.losses.registry import get_loss
from dpotool.runs.about import ScoreAbout
from dpotool.runs.atomic import as_cell, atomic_path, ensure_writable, write_text
from dpotool.runs.checked import read_bytes
from dpotool.runs.folder import RunFolder, is_checkpoint_name
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.schemas import SCORE_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.reading import ImportConfig

_STATE, _TRAINER_LOG = "trainer_state.json", "trainer_log.jsonl"


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What came of a file."""

    folder: RunFolder
    kind: str
    path: Path
    """The table that was written."""
    n_rows: int
    left_out: list[str]
    """What of the file is in no table, named with its shape or type."""


def import_file(file: str, config: ImportConfig) -> ImportResult:
    """Reads a file and writes it as a run folder: metrics, a score table, or a table by pair_id.

    Raises DpotoolError when the file is none of the known kinds or cannot be read, or the folder is another run's.
    """
    path = find_file(Path(file))
    if config.kind is not None and config.kind not in KINDS:
        raise DpotoolError(f"unknown kind {config.kind!r}", where="--kind", remedy=suggest_nearest(config.kind, KINDS))
    if config.loss is not None:
        config = replace(config, loss=get_loss(config.loss).name)
    check_told_lambda(config.loss, config.lambda_)
    kind = recognise(path) if config.kind is None else config.kind
    content, left_out = KINDS[kind].read(path, config)
    folder = RunFolder(
        Path(config.output)
        if config.output
        else Path("runs") / _name(path if Path(file).is_file() else Path(file) / path.name)
    )
    _claim(folder, path, config)
    target = _write(folder, path, config, content)
    return ImportResult(folder, kind, target, len(content), left_out)


def _name(path: Path) -> str:
    """The folder's name for files that have the same name everywhere, else the name of the file."""
    if path.name in (_STATE, _TRAINER_LOG, "results_samples.pt"):
        return find_place(path).parent.name
    return path.stem


def _claim(folder: RunFolder, path: Path, config: ImportConfig) -> None:
    if folder.manifest_path.exists():
        manifest = folder.read_manifest()
        if manifest["kind"] != "import":
            raise DpotoolError(
                "holds another run", where=str(folder.path), got=f"kind {manifest['kind']}", remedy="Choose --output"
            )
    elif any((folder.path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise DpotoolError("holds a model, and no run", where=str(folder.path), remedy="Choose another with --output")
    ensure_writable(folder.path)
    settings = {**config.to_dict(), "file": str(path)}
    manifest = collect_manifest("import", settings, fingerprints={"file": _hash(path)})
    folder.write_manifest(manifest | {"status": "finished"})


def _write(folder: RunFolder, path: Path, config: ImportConfig, content: Any) -> Path:
    if isinstance(content, list):
        write_text(folder.metrics_path, "")
        for row in content:
            folder.append_metrics(row)
        return folder.metrics_path
    data = config.data or path.stem
    if "status" in content:
        target = folder.table_path("score", data, config.split)
        about = ScoreAbout(
            command="import",
            settings={**config.to_dict(), "file": str(path)},
            label=folder.name,
            data=data,
            split=config.split,
            beta=config.beta,
            imported_from=str(path),
        )
        run = ScoredRun(content.reindex(columns=SCORE_SCHEMA.names), folder.name, about, path=target)
        write_table(run.table, target, SCORE_SCHEMA, about.to_dict())
        summary, verdict = summarize_scores(run), judge_displacement(run)
        write_summary(target, {**about.to_dict(), **summary, "verdict": verdict and verdict.to_dict()})
        return target
    target = folder.table_path("imported", data, config.split, format="csv")
    with atomic_path(target) as temporary:
        content.rename(columns=as_cell).to_csv(temporary, index=False)
    return target


def _read_pairs(path: Path, config: ImportConfig) -> tuple[pd.DataFrame, list[str]]:
    """A table of tensors; a score table if it has log-likelihoods of both completions."""
    frame, left_out = read_tensors(path)
    if not {"chosen_logps", "rejected_logps"} <= set(frame):
        return frame, left_out
    known = [name for name in _LOGPS if name in frame]
    frame["status"] = np.where(np.isfinite(frame[known]).all(axis=1), "ok", NOT_FINITE)
    if {"ref_chosen_logps", "ref_rejected_logps"} <= set(frame):
        beta = 1.0 if config.beta is None else config.beta
        frame = frame.assign(**derive_rewards(frame, beta))
    left_out += [f"{name} (no column of a score table)" for name in frame if name not in SCORE_SCHEMA.names]
    return frame[[name for name in SCORE_SCHEMA.names if name in frame]], left_out


_LOGPS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: how it is recognised by name, and the function that reads it."""

    names: tuple[str, ...]
    """Patterns of file names, lower case."""
    read: Callable[[Path, ImportConfig], tuple[Any, list[str]]]
    """Returns rows of a log or a table of pairs, and what is in neither."""


def _log(read: Callable[[Path, ImportConfig], list[dict[str, Any]]]) -> Callable[..., tuple[Any, list[str]]]:
    return lambda path, config: (read(path, config), [])


KINDS: dict[str, Kind] = {
    "tensorboard": Kind(("*tfevents*",), _log(read_tensorboard)),
    "llama-factory": Kind((_TRAINER_LOG,), _log(read_trainer_log)),
    "trl": Kind(("*.json",), _log(read_trainer_state)),
    "wandb": Kind(("*.csv", "*.parquet"), _log(read_history)),
    "trackio": Kind(("*.db",), _log(read_trackio)),
    "reward-bench": Kind(("*.jsonl",), lambda path, config: (read_reward_bench(path, config.beta), [])),
    "tensors": Kind(("*.pt", "*.pth"), _read_pairs),
}
"""Name of a kind of file -> how it is known and read; of several that a name fits, the first."""


def find_file(path: Path) -> Path:
    """Returns what to read: the file itself, or in a training's folder the most informative log.

    That is trainer_state.json, in the folder or in its newest checkpoint; else TensorBoard's events, for which the
    folder itself stands; else LLaMA-Factory's trainer_log.jsonl.

    Raises:
        DpotoolError: there is nothing, or nothing of the kind in the folder.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DpotoolError("no such file", where=str(path))
    states = [each / _STATE for each in path.glob("checkpoint-*") if is_checkpoint_name(each.name)]
    states = sorted(states, key=lambda state: int(state.parent.name.partition("-")[2]), reverse=True)
    found = [state for state in (path / _STATE, *states) if state.is_file()]
    if found:
        return found[0]
    if any(path.glob("*tfevents*")):
        return path
    if (path / _TRAINER_LOG).is_file():
        return path / _TRAINER_LOG
    raise DpotoolError(
        f"holds no {_STATE}, nor does a checkpoint in it", where=str(path), remedy="Name the file to import"
    )


def recognise(path: Path) -> str:
    """Returns which of KINDS a file looks like. Raises DpotoolError when it looks like none."""
    if path.is_dir():
        return "tensorboard"
    for name, kind in KINDS.items():
        if any(fnmatch(path.name.lower(), pattern) for pattern in kind.names):
            return name
    raise DpotoolError(
        "cannot tell what wrote it from its name",
        where=str(path),
        expected=", ".join(pattern for kind in KINDS.values() for pattern in kind.names),
        remedy=f"Name --kind, one of {', '.join(KINDS)}",
    )


def _hash(path: Path) -> str:
    """Returns 16 hex digits of a file's content, or of all event files in a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*tfevents*"))
    return hashlib.sha256(b"".join(read_bytes(file) for file in files)).hexdigest()[:16]
