"""How paths are shown in pages for others: relative to the working folder if below it, else by name alone.

This concerns absolute paths and paths that lead up (`../../home`), in the forms of any system: ~, C:, shares, file:.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_PART = r"""[^\s/\\'"`,;:]"""
_MARKED = rf"(?:file:(?://[\w.-]*(?=/))?|~[\w.-]*|[A-Za-z]:|(?:{_PART}+[/\\])*\.\.)(?=[/\\])"
_BEGINNING = r"(?<![\w.:/\\…~-])"  # after a blank, bracket, quote or equals sign, never inside a word or an address

_WHOLE = re.compile(rf"(?:{_MARKED}|[/\\])")
_QUOTED = re.compile(rf"""(?<=(['"`]))(?:{_MARKED}|(?=[/\\]))[^'"`\n]*[/\\][^'"`\n]*(?=\1)""")
# without a mark in front, a path has two parts or more: "/start" may be a word
_IN_TEXT = re.compile(rf"{_BEGINNING}(?:{_MARKED}(?:[/\\]+{_PART}*)+|[/\\]+{_PART}+(?:[/\\]+{_PART}*)+)")


def tell_path(name: str, here: Path | None = None) -> str:
    """Returns a path without the folders of this machine; a hub id and what lies below `here` as they are."""
    return _shorten(name, _base(here)) if _WHOLE.match(name) else name


def hide_folders(text: str, here: Path | None = None) -> str:
    """Returns a text with every path in it shown so. A path ends at a blank unless it is in quotes."""
    base = _base(here)
    text = _QUOTED.sub(lambda found: _shorten(found.group(0), base), text)
    return _IN_TEXT.sub(lambda found: _shorten(found.group(0), base), text)


def _base(here: Path | None) -> Path:
    return (here or Path.cwd()).resolve()


def _shorten(place: str, base: Path) -> str:
    place = re.sub(r"^file:(?://[^/]*)?", "", place)
    if not re.match(r"~|\\|[A-Za-z]:", place):  # those lie below nothing here
        path = Path(os.path.normpath(base / place))
        if path != base and path.is_relative_to(base):
            return str(path.relative_to(base))
    names = [name for name in re.split(r"[/\\]+", place) if name]
    return f"…/{names[-1]}" if names else "…"
