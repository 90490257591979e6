"""What `dpotool score` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import DRY_RUN, SubjectSettings, setting


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SubjectSettings):
    """Settings of one scoring."""

    beta: float | None = setting(None, "Scale of rewards; without it the run's own, or 0.1.")
    noise_floor: bool = setting(
        True, "Score a sample of 8 to 32 pairs twice to see what rounding does; --no-noise-floor leaves it out."
    )
    measures: str = setting(
        "", "What to say of each pair beside its log-probabilities, comma-separated; docs/cli.md lists the measures."
    )
    dry_run: bool = setting(False, DRY_RUN)
    tokens: bool = setting(False, "Also write per-token log-probabilities to a second table.")
