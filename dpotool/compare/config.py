"""What `dpotool compare` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import Range, ScreenSettings, setting


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ScreenSettings):
    """Settings of a comparison."""

    baseline: str | None = setting(
        None,
        "Run to compare the others with, by label, folder name or path. The default is the first DPO run, "
        "else the first run.",
    )
    data: str | None = setting(
        None,
        "Use the scores on this data, if a run has several. The default is the data it was evaluated on, "
        "else the newest.",
    )
    split: str | None = setting(None, "Use the scores on this split.")
    limit: int | None = setting(None, "Use the scores on the first N rows, if a run has them.")
    delta: float = setting(
        3.0,
        "Recommend a run only if a loss of this many points of reward accuracy is ruled out.",
        range=Range(0, 100, includes_low=False, includes_high=False),
    )
    margin_share: float = setting(
        0.5, "Recommend a run only if it keeps at least this share of the baseline's mean margin.", range=Range(0, 1)
    )
    format: str = setting("table", "Format of the output: table, csv, markdown or latex.")
    seed: int = setting(0, "Seed of the bootstrap and the permutation tests.")
