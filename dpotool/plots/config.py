"""What `dpotool plot` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class PlotConfig(Settings):
    """Settings of pictures."""

    data: str | None = setting(None, "Which data's scores, where a run has several; without it the newest.")
    split: str | None = setting(None, "Which split's scores.")
    format: str = setting("png", "png, pdf or svg, or several, comma-separated.")
    output: str | None = setting(None, "Folder for the pictures; without it plots/ in the run or sweep folder.")
