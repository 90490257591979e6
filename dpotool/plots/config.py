"""What `dpotool plot` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class PlotConfig(Settings):
    """Settings of pictures."""

    data: str | None = setting(
        None,
        "Use the scores on this data, if a run has several. The default is the data it was evaluated on, "
        "else the newest.",
    )
    split: str | None = setting(None, "Which split's scores.")
    limit: int | None = setting(None, "Scores of the first N rows, where a run has such.")
    y: str | None = setting(
        None, "What `tradeoff` draws against the likelihood: accuracy, margin or win-rate. The default is accuracy."
    )
    pair: int | None = setting(
        None, "Which pair `tokens` shows, by its pair_id. The default is the one whose chosen answer fell most."
    )
    format: str = setting("png", "png, pdf or svg, or several, comma-separated.")
    output: str | None = setting(None, "Folder for the pictures. The default is plots/ in the run or sweep folder.")
