"""The command that makes a score table again: with what the table records, where `dpotool score` would do otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpotool.runs.commands import list_flags
from dpotool.settings import DEFAULT_BETA, SubjectSettings

NOT_RECORDED = "Score tables do not record --dtype and --truncation: a scoring that was given one needs it again."
_CUT = ("data", "test_fraction", "split_seed")
_ROWS = ("data", "limit", "split", "test_fraction", "split_seed", "seed", "skip_invalid")
_SAME = ("max_length", "beta", "reference")


def rescore_trained(about: Mapping[str, Any], config: Mapping[str, Any], run: str) -> list[str]:
    """Returns the words of the command that scores a trained run as a table was.

    Args:
        about: the table's metadata.
        config: of the run's manifest.
        run: where it is trained again.
    """
    evaluated = "eval_" if config.get("eval_data") else ""
    own = {**config, **{name: config.get(f"{evaluated}{name}") for name in ("data", "split", "limit")}}
    if own.get("split_seed") is None:
        own["split_seed"] = config.get("seed")
    asked = _read_asked(about)
    is_own = all(asked.get(name, own.get(name)) == own.get(name) for name in _CUT)  # else --data was named
    untold = {name: own.get(name) for name in _ROWS} if is_own else _untold()
    untold |= {name: config.get(name) for name in _SAME}
    untold |= {"beta": config.get("beta") or DEFAULT_BETA, "reference": config.get("reference") or config.get("model")}
    return ["score", run, *_list_unlike(asked, untold)]


def rescore_foreign(about: Mapping[str, Any], config: Mapping[str, Any], manifest: Path, output: str) -> list[str]:
    """Returns the words of the command that scores a model from elsewhere as a table was.

    The manifest is that of the folder's first scoring. Where it has what the table was made without, and no flag takes
    back, the command does without it.

    Args:
        about, config: as for `rescore_trained`.
        manifest: path of the folder's run.yaml.
        output: folder to write to.
    """
    asked, model = _read_asked(about), str(config["model"])
    if any(config.get(name) and not value for name, value in asked.items()):
        return ["score", model, *_list_unlike(asked, _untold()), "--output", output]
    untold = {**config, "beta": config.get("beta") or DEFAULT_BETA}
    return ["score", model, "--config", str(manifest), *_list_unlike(asked, untold), "--output", output]


def _read_asked(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a table records of its scoring; older ones lack some."""
    named = {name: value for name, value in about.items() if name != "data"}  # a table's name is not what --data takes
    found = {**named, **(about.get("rows") or {})}
    return {name: found[name] for name in (*_ROWS, *_SAME) if name in found}


def _untold() -> dict[str, Any]:
    return {**SubjectSettings().to_dict(), "beta": DEFAULT_BETA}


def _list_unlike(asked: Mapping[str, Any], untold: Mapping[str, Any]) -> list[str]:
    unlike = {name: value for name, value in asked.items() if value != untold.get(name)}
    if "data" not in unlike and untold.get("split") is None and asked.get("split") in ("test", "all"):
        unlike.pop("split", None)  # what is read without --split
    return list_flags(unlike)
