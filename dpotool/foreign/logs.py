"""Training logs of other tools, as rows under the names that `dpotool train` logs.

TRL and transformers call things alike wherever they log to, but put `train/` or `eval/` in front for services: what is
`eval_logps/chosen` in trainer_state.json is `eval/logps/chosen` in TensorBoard, Weights & Biases and trackio.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from dpotool.errors import DpotoolError, find_place
from dpotool.foreign.tables import read_json, read_text
from dpotool.runs.checked import check_value, parse_json
from dpotool.runs.manifest import Count
from dpotool.settings.reading import ImportConfig

Row = dict[str, Any]
_REMEDY = "Copy the file again from where it was written"
_STEPS = ("train/global_step", "global_step", "_step", "step")
"""Columns that may hold the optimiser step, best first; a service's own counter goes up by one with every row."""
_OF_THE_SERVICE = ("_", "system/", "profiling/")
_CLOSING = ("train_", "total_flos", "global_step")
"""Columns of the row that ends a training, which do not belong to a step."""
_OF_LLAMA_FACTORY = {"loss": "loss", "eval_loss": "eval_loss", "accuracy": "rewards/accuracies", "lr": "learning_rate"}


class _TrainerState(msgspec.Struct):
    """What is read of a trainer_state.json beside its log."""

    global_step: Count | None = None
    max_steps: int | None = None


class _Logged(msgspec.Struct):
    """What every row of a log has."""

    step: Count


def read_trainer_state(path: Path, config: ImportConfig) -> list[Row]:
    """Returns the rows of TRL's (or transformers') `log_history`, ordered by step.

    The closing row of run times is left out.

    Raises:
        DpotoolError: the file holds no log_history, or its steps are wrong.
    """
    content = read_json(path)
    history = content.get("log_history") if isinstance(content, dict) else None
    if not isinstance(history, list):
        raise DpotoolError(
            "holds no log_history", where=str(path), remedy="Name the trainer_state.json of a checkpoint folder"
        )
    found = (row for row in history if isinstance(row, dict) and not ("train_runtime" in row or "step" not in row))
    rows = _finish(found, path, config, "log_history")
    state = check_value(content, _TrainerState, where=str(path), remedy=_REMEDY)
    reached = max(rows[-1]["step"], state.global_step or 0)
    if state.max_steps is not None and 0 < state.max_steps < reached:
        raise DpotoolError(
            "goes beyond its own end", where=str(path), expected=f"at most max_steps, {state.max_steps}",
            got=f"step {reached}", remedy=_REMEDY,
        )  # fmt: skip
    return rows


def read_trainer_log(path: Path, config: ImportConfig) -> list[Row]:
    """Returns the rows of LLaMA-Factory's trainer_log.jsonl: loss, learning rate and accuracy, and nothing else.

    The log-likelihoods of the same run are in the trainer_state.json of its checkpoints.
    """
    return _finish(_read_lines(path), path, config, "line")


def _read_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DpotoolError(f"cannot be read as JSON ({error})", where=f"{path}:{number}", remedy=_REMEDY) from None
        if isinstance(row, dict) and "current_steps" in row:
            kept = {ours: row[theirs] for theirs, ours in _OF_LLAMA_FACTORY.items() if row.get(theirs) is not None}
            yield {"step": row["current_steps"], **kept}


def read_history(path: Path, config: ImportConfig) -> list[Row]:
    """Returns the rows of a run's history as Weights & Biases exports it: `run.history()` as CSV, JSON or Parquet.

    Raises:
        DpotoolError: the file cannot be read as a table, or its steps are wrong.
    """
    try:
        if path.suffix == ".csv":
            frame = pd.read_csv(path)
        else:
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_json(path)
    except (OSError, ValueError) as error:
        raise DpotoolError(
            f"cannot be read as a table ({str(error).splitlines()[0]})", where=str(path), remedy=_REMEDY
        ) from None
    rows = ({str(name): value for name, value in row.items()} for row in frame.to_dict("records"))
    return _finish(map(_translate, rows), path, config, "row")


def read_trackio(path: Path, config: ImportConfig) -> list[Row]:
    """Returns the rows of a run in a project's database of trackio; `config.run` says which, where it has several.

    Raises:
        DpotoolError: the file is no such database, or the run is not in it or not named.
    """
    try:
        with closing(sqlite3.connect(f"{find_place(path).as_uri()}?mode=ro", uri=True)) as database:
            logged = list(database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"))
    except sqlite3.Error as error:
        raise DpotoolError(f"is no database of trackio ({error})", where=str(path)) from None
    runs = sorted({str(name) for name, _, _ in logged})
    if config.run is None and len(runs) > 1:
        raise DpotoolError(
            "holds several runs", where=str(path), expected="one of them named", got=", ".join(runs),
            remedy=f"Choose one, for example --run {runs[-1]}",
        )  # fmt: skip
    if config.run is not None and config.run not in runs:
        raise DpotoolError("no such run", where=f"{path}: --run {config.run}", expected=", ".join(runs) or "none")
    found = (
        _translate({"_step": step, **parse_json(metrics if isinstance(metrics, str) else metrics.decode())})
        for name, step, metrics in logged
        if config.run in (None, str(name))
    )
    return _finish(found, path, config, "row")


def read_tensorboard(path: Path, config: ImportConfig) -> list[Row]:
    """Returns the scalars of a TensorBoard event file, or of all those in its folder, a row per step and kind.

    Raises:
        DpotoolError: tensorboard is not installed, or the file's steps are wrong.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise DpotoolError("reading it needs tensorboard", where=str(path), remedy="pip install tensorboard") from None
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})  # 0: keep them all
    events.Reload()
    rows: dict[tuple[bool, int], Row] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            row = rows.setdefault((tag.startswith("eval"), event.step), {"step": event.step})
            row |= _translate({tag: event.value})
    return _finish(rows.values(), path, config, "event")


def _translate(row: Row) -> Row:
    """Returns a service's row under dpotool's names: `train/loss` is `loss`, `eval/loss` is `eval_loss`."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
    found: Row = {}
    for name, value in numbers.items():
        head, _, rest = name.partition("/")
        ours = {"train": rest, "eval": f"eval_{rest}"}.get(head, name) if rest else name
        if name not in _STEPS and not name.startswith(_OF_THE_SERVICE) and not ours.startswith(_CLOSING):
            found[ours] = value
    steps = [numbers[name] for name in _STEPS if name in numbers]
    return {"step": int(steps[0]), **found} if steps and found else found


def _finish(rows: Iterable[Row], path: Path, config: ImportConfig, kind: str) -> list[Row]:
    """Checks the steps, orders the rows by them, and adds displacement where beta makes it known."""
    finished = []
    for number, row in enumerate(rows):
        if not row or row.keys() == {"step"}:
            continue
        step = check_value(row, _Logged, where=f"{path}: {kind}.{number}", remedy=_REMEDY).step
        finished.append(_add_displacement(row | {"step": step}, config.beta))
    if not finished:
        raise DpotoolError("has logged nothing", where=str(path), remedy="Train with logging_steps above 0")
    return sorted(finished, key=lambda row: row["step"])


def _add_displacement(row: Row, beta: float | None) -> Row:
    """`displacement/chosen` is `rewards/chosen` over beta (nats)."""
    for prefix in ("", "eval_"):
        reward = row.get(f"{prefix}rewards/chosen")
        if beta and isinstance(reward, int | float) and f"{prefix}displacement/chosen" not in row:
            row[f"{prefix}displacement/chosen"] = reward / beta
    return row
