"""Reads settings from a file: YAML with a plain mapping of them, a run.yaml, whose `config` section is one, or a table.

A table records every setting of the command that made it, so that the command can make it again.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Set
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dpotool.errors import DpotoolError
from dpotool.settings.fields import Settings, list_names
from dpotool.settings.shared import DataSettings


def read_config(
    path: Path,
    settings: type[Settings],
    *,
    command: str = "",
    others: Mapping[str, type[Settings]] = MappingProxyType({}),
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Returns the file's settings by field name; `lambda` and dashes are accepted as on the command line.

    The run.yaml of a training gives commands that score a model the pairs it was evaluated on, as the
    run folder does. The output folder of another command is ignored.

    Args:
        command, settings: the command and the names of its settings.
        others: the settings of all commands. Those of other commands are left out, and `note` gets their number.

    Raises:
        DpotoolError: the file is missing, is no YAML mapping, or holds a key that is no setting of any command.
    """
    from dpotool.runs.manifest import COMMANDS
    from dpotool.runs.tables import FORMATS

    known = list_names(settings)
    content = _read_table_settings(path) if path.suffix[1:] in FORMATS else _read_mapping(path)
    if isinstance(content.get("config"), dict):
        author = COMMANDS.get(str(content.get("kind")), command)
        content = content["config"] | ({} if author == command else {"output": None})
        theirs = others.get(author, settings)
        known -= _find_namesakes(settings, theirs)
        if issubclass(theirs, DataSettings) and not issubclass(settings, DataSettings):
            known -= {"data", "split", "limit"}  # there a file or hub id, here the name of a table
    elsewhere = {name for other in others.values() for name in list_names(other)} - known
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = _field_name(str(key), known | elsewhere)
        if name not in known | elsewhere:
            remedy = _suggest(name, command, settings, known)
            raise DpotoolError(f"unknown setting {str(key)!r}", where=str(path), remedy=remedy)
        found[name] = _join_list(value, where=f"{path}: {key}")
    if found.get("eval_data") is not None and "eval_data" not in known:
        found |= {name: found.pop(f"eval_{name}", None) for name in ("data", "split", "limit")}
    found = {name: value for name, value in found.items() if value is not None}
    if found.pop("trust_remote_code", False):
        note(f"{path}: trust_remote_code is left out; only --trust-remote-code on the command line runs foreign code")
    found = {name: value for name, value in found.items() if not _is_switched_off(name, settings, found)}
    n_left_out = len(found.keys() & elsewhere)
    if n_left_out:
        note(f"{path}: {n_left_out} {'setting' if n_left_out == 1 else 'settings'} of other commands left out")
    return {name: value for name, value in found.items() if name in known}


def _join_list(value: Any, *, where: str) -> Any:
    """Returns a YAML list as the command line takes several values, separated by commas; any other value unchanged."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, dict | list) for each in values):
        raise DpotoolError(
            "is no value of a setting", where=where, expected="a text, a number or a list of such", got=str(value)[:60]
        )
    return ",".join(map(str, values)) if isinstance(value, list) else value


def _is_switched_off(name: str, settings: type[Settings], found: Mapping[str, Any]) -> bool:
    """Whether the same file puts the setting off without which this one has no effect, as a run.yaml does."""
    switch = next((field.metadata.get("switch") for field in fields(settings) if field.name == name), None)
    return switch is not None and found.get(switch) is False


def _find_namesakes(mine: type[Settings], theirs: type[Settings]) -> set[str]:
    """Names that mean another thing to each of two commands, as their defaults show: --optimizer, --lambdas."""
    defaults = {field.name: field.default for field in fields(theirs)}
    return {
        field.name
        for field in fields(mine)
        if field.default is not None and defaults.get(field.name) not in (None, field.default)
    }


def _read_table_settings(path: Path) -> Mapping[str, Any]:
    """Returns what a table records of its making, in the form of a run.yaml; None of it where the file is no table."""
    from dpotool.runs.about import TableAbout, read_about
    from dpotool.runs.manifest import COMMANDS

    about = read_about(path, TableAbout)
    if about.settings is None:
        raise DpotoolError(
            "does not record the settings it was made with", where=str(path), remedy="Name a run.yaml, or a newer table"
        )
    kind = next((kind for kind, name in COMMANDS.items() if name == about.command), "score")
    return {"kind": kind, "config": about.settings}


def _read_mapping(path: Path) -> Mapping[str, Any]:
    from dpotool.runs.checked import load_yaml

    try:
        content = load_yaml(path)
    except OSError as error:
        remedy = "Name a YAML file of settings, such as a run's run.yaml"
        raise DpotoolError(f"cannot be read ({error.strerror})", where=str(path), remedy=remedy) from None
    except ValueError as error:
        raise DpotoolError(f"is no valid YAML ({error})", where=str(path)) from None
    if not isinstance(content, dict):
        raise DpotoolError(
            "holds no settings", where=str(path), expected="lines such as 'loss: shift'", got=type(content).__name__
        )
    return content


def _field_name(key: str, known: Set[str]) -> str:
    name = key.replace("-", "_")
    return f"{name}_" if f"{name}_" in known else name


def _suggest(name: str, command: str, settings: type[Settings], known: Set[str]) -> str:
    """Returns what was meant, by another tool's name for it or the nearest one, and where all of them are listed."""
    meant = [field.name for field in fields(settings) if name in field.metadata.get("near", ())]
    nearest = meant or difflib.get_close_matches(name, [known_name.strip("_") for known_name in known], n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0].strip('_').replace('_', '-')!r}? " if nearest else ""
    return f"{hint}`{' '.join(['dpotool', *command.split(), '--help'])}` lists the settings"
