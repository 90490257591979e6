"""What `dpotool compare` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import Range, ScreenSettings, setting


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ScreenSettings):
    """Settings of a comparison."""

    baseline: str | None = setting(
        None, "Run to compare the others with, by label, folder name or path; without it the DPO run, else the first."
    )
    data: str | None = setting(
        None, "Which data's scores, where a run has several; without it those it was evaluated on, else the newest."
    )
    split: str | None = setting(None, "Which split's scores.")
    limit: int | None = setting(None, "Scores of the first N rows, where a run has such.")
    delta: float = setting(
        3.0,
        "A remedy is recommended only where a loss of this many points of reward accuracy is ruled out.",
        range=Range(0, 100, includes_low=False, includes_high=False),
    )
    margin_share: float = setting(
        0.5, "A remedy must keep at least this share of the baseline's mean margin.", range=Range(0, 1)
    )
    format: str = setting("table", "table, csv, markdown or latex.")
    seed: int = setting(0, "Seed of the bootstrap and the permutation tests.")
