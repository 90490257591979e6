"""Reads settings from a YAML file: a plain mapping of them, or a run.yaml, whose `config` section is one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.settings import Settings


def read_config(path: Path, settings: type[Settings]) -> dict[str, Any]:
    """Returns the file's settings by field name; `lambda` and dashes are accepted as on the command line.

    Raises:
        DpotoolError: the file is missing, is no YAML mapping, or holds a key that is no setting of this command.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DpotoolError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise DpotoolError(f"is no valid YAML ({detail})", where=str(path)) from None
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content = content["config"]
    if not isinstance(content, dict):
        raise DpotoolError(
            "holds no settings", where=str(path), expected="lines such as 'loss: shift'", got=type(content).__name__
        )
    known = {field.name for field in fields(settings)}
    named = {_field_name(str(key), known): value for key, value in content.items()}
    for name in named.keys() - known:
        raise DpotoolError(f"unknown setting {name!r}", where=str(path), remedy=suggest_nearest(name, known))
    return {name: value for name, value in named.items() if value is not None}


def _field_name(key: str, known: set[str]) -> str:
    name = key.replace("-", "_")
    return f"{name}_" if f"{name}_" in known else name
