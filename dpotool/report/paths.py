"""Keeps the folders of the machine it was made on out of a page that is sent to others.

A path below the folder where the report was made is told from there. Of any other absolute path only the name is kept,
behind an ellipsis. Texts of pairs are left as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpotool.report.blocks import Page, map_text

# an absolute path of two parts or more: after a blank, bracket, quote or equals sign, never inside a word or an address
_ABSOLUTE = re.compile(r"""(?<![\w.:/\\…~-])(?:~|[A-Za-z]:(?=\\))?[/\\](?:[^\s/\\'"`,;:]+[/\\])+([^\s/\\'"`,;:]*)""")


def hide_paths(page: Page, here: Path | None = None) -> Page:
    """Returns the page with every absolute path cut to what is below `here` (the working directory) or to its name."""
    base = (here or Path.cwd()).resolve()

    return map_text(page, lambda text: _ABSOLUTE.sub(lambda found: _shorten(found, base), text))


def _shorten(found: re.Match[str], base: Path) -> str:
    path = Path(found.group(0))
    if path != base and path.is_relative_to(base):
        return str(path.relative_to(base))
    return f"…/{found.group(1) or path.name}"
