"""Reads what other tools leave: TRL's trainer_state.json, reward-bench's JSON lines, dicts of tensors.

Nothing is ever unpickled: tensors are loaded with `weights_only=True`, which refuses everything else.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import torch

from dpotool.data.pairs import hash_prompt
from dpotool.errors import DpotoolError
from dpotool.runs.checked import check_value, parse_json
from dpotool.runs.folder import is_checkpoint_name
from dpotool.runs.manifest import Count

KINDS = ("trl", "reward-bench", "tensors")
_INDEX = "sample_indices"
_STATE = "trainer_state.json"
_REMEDY = "Copy the file again from where it was written"


class _TrainerState(msgspec.Struct):
    """What is read of a trainer_state.json beside its log."""

    global_step: Count | None = None
    max_steps: int | None = None


class _Logged(msgspec.Struct):
    """What every row of the log has."""

    step: Count


def find_file(path: Path) -> Path:
    """Returns what to read: a file as it is; of a training's folder, the log of its newest checkpoint.

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
    if not found:
        raise DpotoolError(
            f"holds no {_STATE}, nor does a checkpoint in it", where=str(path), remedy="Name the file to import"
        )
    return found[0]


def recognise(path: Path) -> str:
    """Returns which of KINDS a file looks like. Raises DpotoolError when it looks like none."""
    if path.suffix in (".pt", ".pth"):
        return "tensors"
    if path.suffix == ".jsonl":
        return "reward-bench"
    if path.suffix == ".json":
        return "trl"
    raise DpotoolError(
        "cannot tell what wrote it from its name",
        where=str(path),
        expected=".json, .jsonl or .pt",
        remedy="Name --kind",
    )


def read_trainer_state(path: Path, beta: float | None) -> list[dict[str, Any]]:
    """Returns the rows of TRL's (or transformers') `log_history` under dpotool's names, ordered by step.

    The names are the same but for `displacement/chosen`, which is `rewards/chosen` over beta where beta is known. The
    closing row of run times is left out.
    """
    content = _read_json(path)
    history = content.get("log_history") if isinstance(content, dict) else None
    if not isinstance(history, list):
        raise DpotoolError(
            "holds no log_history", where=str(path), remedy="Name the trainer_state.json of a checkpoint folder"
        )
    rows = [_read_log(row, beta) for row in history if isinstance(row, dict) and not _is_closing(row)]
    if not rows:
        raise DpotoolError("has logged nothing", where=str(path), remedy="Train with logging_steps above 0")
    for number, row in enumerate(rows):
        row["step"] = check_value(row, _Logged, where=f"{path}: log_history.{number}", remedy=_REMEDY).step
    rows.sort(key=lambda row: row["step"])
    state = check_value(content, _TrainerState, where=str(path), remedy=_REMEDY)
    reached = max(rows[-1]["step"], state.global_step or 0)
    if state.max_steps is not None and 0 < state.max_steps < reached:
        raise DpotoolError(
            "goes beyond its own end", where=str(path), expected=f"at most max_steps, {state.max_steps}",
            got=f"step {reached}", remedy=_REMEDY,
        )  # fmt: skip
    return rows


def read_reward_bench(path: Path, beta: float | None) -> pd.DataFrame:
    """Returns a score table of the JSON lines that `rewardbench` writes, of either kind.

    MODEL_all.jsonl (`--save_all`) has `chosen` and `rejected`; MODEL_outputs.jsonl has `scores_chosen` and
    `scores_rejected`, with the prompt as it was put to the model, which becomes `prompt_id`.

    For a DPO model these are log-ratios without beta, which multiplies them here; there are no log-likelihoods.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):  # a string may hold U+2028, which ends none
        if line.strip():
            rows.append(_read_rewards(line, f"{path}:{number}"))
    if not rows:
        raise DpotoolError("holds no rewards", where=str(path))
    scale = 1.0 if beta is None else beta
    frame = pd.DataFrame(rows, columns=["chosen_rewards", "rejected_rewards", "prompt_id"])
    frame[["chosen_rewards", "rejected_rewards"]] *= scale
    frame["reward_margins"] = frame["chosen_rewards"] - frame["rejected_rewards"]
    return frame.assign(pair_id=range(len(frame)), status="ok")


def read_tensors(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Returns a row per pair of a saved dict of one-dimensional tensors, all of one length, and what was left out.

    `sample_indices`, as princeton-nlp/unintentional-unalignment writes it, becomes `pair_id`; without it rows count.
    Anything that is no such tensor is left out and named with its shape or type.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DpotoolError(f"holds more than tensors, or cannot be read ({detail})", where=str(path)) from None
    if not isinstance(content, dict):
        raise DpotoolError("holds no dict of tensors", where=str(path), got=type(content).__name__)
    columns = {
        str(name): value for name, value in content.items() if isinstance(value, torch.Tensor) and value.ndim == 1
    }
    for name, value in columns.items():
        if value.is_complex():
            raise DpotoolError("holds complex numbers", where=f"{path}: {name}", expected="real ones")
    left_out = [f"{name} ({_describe(value)})" for name, value in content.items() if str(name) not in columns]
    lengths = {len(value) for value in columns.values()}
    if len(lengths) != 1:
        raise DpotoolError(
            "its tensors are not a table", where=str(path), expected="one-dimensional tensors of one length",
            got=", ".join([*(f"{name} of {tuple(value.shape)}" for name, value in columns.items()), *left_out])
            or "none",
        )  # fmt: skip
    # float64 holds every float and every row number exactly, and numpy has no bfloat16
    frame = pd.DataFrame({name: value.detach().to(torch.float64).numpy() for name, value in columns.items()})
    for column in frame:
        _check_range(frame[column], str(column), path)
    pair_ids = _check_index(frame.pop(_INDEX), path) if _INDEX in frame else pd.Series(range(len(frame)))
    return frame.assign(pair_id=pair_ids).sort_values("pair_id", ignore_index=True), left_out


def _check_range(values: pd.Series, name: str, path: Path) -> None:
    """Refuses what no log-probability and no number of tokens can be; what is not finite is left out later."""
    finite = values[np.isfinite(values)]
    if name.endswith("_logps"):
        odd, expected = finite[finite > 0], "log-probabilities, at most 0"
    elif name.endswith("_tokens"):
        odd, expected = values[~np.isfinite(values) | (values < 1) | (values % 1 != 0)], "whole numbers, at least 1"
    else:
        return
    if len(odd):
        raise DpotoolError(
            "is no such number", where=f"{path}: {name}[{odd.index[0]}]", expected=expected, got=f"{odd.iloc[0]:g}"
        )


def _check_index(index: pd.Series, path: Path) -> pd.Series:
    """Row numbers of the data as integers. Raises DpotoolError when one is no whole number or stands there twice."""
    odd = index[~np.isfinite(index) | (index % 1 != 0) | index.duplicated()]
    if len(odd):
        raise DpotoolError(
            f"{_INDEX} does not number the pairs", where=str(path), expected="whole numbers, each once",
            got=f"{odd.iloc[0]:g}" + (" twice" if index.eq(odd.iloc[0]).sum() > 1 else ""),
            remedy="Keep one row a pair",
        )  # fmt: skip
    return index.astype("int64")


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DpotoolError(f"cannot be read as UTF-8 text ({error})", where=str(path)) from None


def _read_json(path: Path) -> Any:
    try:
        return parse_json(_read_text(path))
    except ValueError as error:
        raise DpotoolError(f"cannot be read as JSON ({error})", where=str(path)) from None


def _is_closing(row: dict[str, Any]) -> bool:
    return "train_runtime" in row or "step" not in row


def _read_log(row: dict[str, Any], beta: float | None) -> dict[str, Any]:
    found = dict(row)
    for prefix in ("", "eval_"):
        reward = row.get(f"{prefix}rewards/chosen")
        if beta and isinstance(reward, int | float) and f"{prefix}displacement/chosen" not in row:
            found[f"{prefix}displacement/chosen"] = reward / beta
    return found


def _read_rewards(line: str, where: str) -> tuple[float, float, str | None]:
    try:
        row = parse_json(line)
        prefix = "scores_" if "scores_chosen" in row else ""
        chosen, rejected = (_read_number(row[f"{prefix}{side}"]) for side in ("chosen", "rejected"))
        prompt = row.get("prompt")
        if not isinstance(prompt, str | list | None):
            raise TypeError(prompt)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError):
        raise DpotoolError(
            "not a line that rewardbench writes for pairs",
            where=where,
            expected='{"chosen": number, "rejected": number} or "scores_chosen" and "scores_rejected"',
            got=line[:60],
        ) from None
    return chosen, rejected, hash_prompt(prompt) if prompt else None


def _read_number(value: Any) -> float:
    """A reward; `_all.jsonl` has a list of one where the reward model gives an array of shape (batch, 1)."""
    number = float(value[0] if isinstance(value, list) else value)
    if not math.isfinite(number):
        raise ValueError(number)
    return number
