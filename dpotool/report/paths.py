"""Keeps the folders of the machine it was made on out of a page that is sent to others.

Texts of pairs are left as they are; figures are drawn with names that are told so already.
"""

from __future__ import annotations

from pathlib import Path

from dpotool.report.blocks import Page, map_text
from dpotool.runs.places import hide_folders


def hide_paths(page: Page, here: Path | None = None) -> Page:
    """Returns the page with every path cut to what is below `here` (the working directory) or to its name."""
    return map_text(page, lambda text: hide_folders(text, here))
