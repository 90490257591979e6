"""Tables of pairs that other tools leave: reward-bench's JSON lines, dicts of tensors.

Nothing is ever unpickled: tensors are loaded with `weights_only=True`, which refuses everything else.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dpotool.data.pairs import hash_prompt
from dpotool.errors import DpotoolError
from dpotool.runs.checked import load_text, parse_json

_INDEX = "sample_indices"


def read_reward_bench(path: Path, beta: float | None) -> pd.DataFrame:
    """Returns a score table of the JSON lines that `rewardbench` writes, of either kind.

    MODEL_all.jsonl (`--save_all`) has `chosen` and `rejected`; MODEL_outputs.jsonl has `scores_chosen` and
    `scores_rejected`, with the prompt as it was put to the model, which becomes `prompt_id`.

    For a DPO model these are log-ratios without beta, which multiplies them here; there are no log-likelihoods.

    Raises:
        DpotoolError: a line is damaged, or there is none.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # a string may hold U+2028, which ends none
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

    Raises:
        DpotoolError: the file holds more than tensors, or tensors that make no table.
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


def read_text(path: Path) -> str:
    """Returns the content of a file. Raises DpotoolError when it cannot be read, or is no UTF-8."""
    try:
        return load_text(path)
    except (OSError, ValueError) as error:
        raise DpotoolError(f"cannot be read as UTF-8 text ({error})", where=str(path)) from None


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file. Raises DpotoolError when it cannot be read."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise DpotoolError(f"cannot be read as JSON ({error})", where=str(path)) from None


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
