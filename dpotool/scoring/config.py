"""What `dpotool score` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import SubjectSettings, setting


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SubjectSettings):
    """Settings of one scoring."""

    beta: float | None = setting(None, "Scale of rewards; without it the run's own, or 0.1.")
    tokens: bool = setting(False, "Also write per-token log-probabilities to a second table.")
