"""What `dpotool report` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.errors import DpotoolError
from dpotool.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Settings of a report."""

    output: str | None = setting(
        None,
        "File to write. The default is report.html (or .md) in the first folder. A Markdown page has its "
        "pictures beside it.",
        flag="--output,-o",
    )
    format: str | None = setting(
        None, "Format of the page: html or markdown. The default follows the output's ending, else html."
    )
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
    split: str | None = setting(None, "Which split's scores.")
    limit: int | None = setting(None, "Scores of the first N rows, where a run has such.")
    pairs: int = setting(5, "How many of the most and of the least displaced pairs to show with their texts.")
    seed: int = setting(0, "Seed of the bootstrap and the permutation tests.")

    def __post_init__(self) -> None:
        """Refuses a negative number of pairs before any work."""
        if self.pairs < 0:
            raise DpotoolError("must not be negative", where="--pairs", got=str(self.pairs))
