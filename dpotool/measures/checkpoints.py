"""A run's checkpoints, scored one after the other: how displacement grew, and from which step on it is certain.

Works for any Trainer, TRL's among them, as they all write `checkpoint-STEP` folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpotool.errors import DpotoolError, expand_home
from dpotool.runs.folder import is_checkpoint_name
from dpotool.wording import count

ALL = "all"


def has_only_checkpoints(folder: str) -> bool:
    """Tells whether a folder holds checkpoints but is itself no model, as many trainers leave it."""
    path = expand_home(folder)
    is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    return not is_model and any(is_checkpoint_name(each.name) for each in path.glob("checkpoint-*"))


def list_checkpoints(run: str, which: str) -> list[str]:
    """Returns the folders of a run's checkpoints, oldest first; with all of them also the run itself, the last one.

    Args:
        which: all, or steps, comma-separated.

    Raises:
        DpotoolError: it has none, or lacks one of those that the user names.
    """
    found = {read_step(str(path)): path for path in Path(run).glob("checkpoint-*") if is_checkpoint_name(path.name)}
    if not found:
        raise DpotoolError(
            "holds no checkpoints", where=run, remedy="Train with --save-steps or --save-at, or leave --checkpoints out"
        )
    if which == ALL:
        steps = sorted(step for step in found if step is not None)
        is_model = any(Path(run).glob("*.safetensors"))
        return [*(str(found[step]) for step in steps), *([run] if is_model else [])]
    wanted = [part.strip() for part in which.split(",")]
    missing = [part for part in wanted if not part.isdecimal() or int(part) not in found]
    if missing:
        known = ", ".join(str(step) for step in sorted(step for step in found if step is not None))
        raise DpotoolError(f"has no checkpoint of step {missing[0]}", where=run, expected=f"all, or some of {known}")
    return [str(found[int(part)]) for part in wanted]


def read_step(model: str) -> int | None:
    """Returns the optimiser step in a checkpoint's name; None for any other folder."""
    name = Path(model).name
    return int(name.partition("-")[2]) if is_checkpoint_name(name) else None


def describe_trajectory(summaries: Sequence[Mapping[str, Any]]) -> str | None:
    """Says at which checkpoint log pi(chosen) has first fallen for certain, and when that first was harmful.

    Args:
        summaries: of the checkpoints, oldest first. None if they have no verdict because there is no reference.
    """
    judged = [(name_checkpoint(summary), summary["verdict"]) for summary in summaries if summary.get("verdict")]
    if not judged:
        return None
    fallen = next((name for name, verdict in judged if verdict["criteria"]["displaced"] == "met"), None)
    harmful = next((name for name, verdict in judged if verdict["kind"] == "harmful"), None)
    if fallen is None:
        return (
            "The probability of the chosen answers is not shown to have fallen at any of "
            f"{count(len(judged), 'checkpoint')}."
        )
    text = f"The probability of the chosen answers is first shown to have fallen at {fallen}"
    return (
        f"{text}. The fall is first harmful at {harmful}."
        if harmful
        else f"{text}. The fall is not shown to be harmful at any of {count(len(judged), 'checkpoint')}."
    )


def name_checkpoint(summary: Mapping[str, Any]) -> str:
    """Returns 'step 200', or 'the end' for the run itself."""
    step = read_step(str(summary.get("model") or ""))
    return "the end" if step is None else f"step {step}"
