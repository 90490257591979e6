"""Command lines, rebuilt from the settings that a manifest and a table record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from dpotool.runs.about import ScoreAbout


def list_flags(settings: Mapping[str, Any]) -> list[str]:
    """Returns settings, by field name, as flags with their values; a switch has none, what is not set is left out."""
    words = []
    for name, value in settings.items():
        flag = f"--{name.rstrip('_').replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words


def repeat_import(config: Mapping[str, Any], about: ScoreAbout, output: str, **others: Any) -> str:
    """Returns the `dpotool import` command that makes a score table again, with `others` in place of its settings.

    Args:
        config: of the run folder's manifest.
        about: the table's metadata, which goes before it: a later import into the same folder has another manifest.
    """
    file = about.imported_from or config["file"]
    known = {"beta": about.beta, "data": about.data, "split": about.split}
    own = {name: value for name, value in known.items() if value is not None}
    settings = {name: value for name, value in {**config, **own, **others}.items() if name not in ("file", "output")}
    return shlex.join(["dpotool", "import", str(file), *list_flags(settings), "--output", output])
