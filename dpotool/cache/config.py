"""What `dpotool cache ls|verify|clear` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import ComputeSettings, DataSettings, Settings, setting


@dataclass(frozen=True, kw_only=True)
class CacheListConfig(Settings):
    """Settings of a listing: there are none."""


@dataclass(frozen=True, kw_only=True)
class CacheVerifyConfig(ComputeSettings, DataSettings):
    """Settings of one check."""

    data: str | None = setting(  # type: ignore[assignment]  # resolved as `score` does
        None, "With --recompute: the pairs, as they were scored; without it, what the run was evaluated on."
    )
    model: str | None = setting(
        None, "Check only the values of this model: name, path or fingerprint as `cache ls` shows them."
    )
    recompute: int = setting(
        0, "Compute N pairs of --model again and print the largest difference; texts are read from --data, not stored."
    )


@dataclass(frozen=True, kw_only=True)
class CacheClearConfig(Settings):
    """What to delete; nothing said: everything."""

    model: str | None = setting(None, "Only what is of this model: name, path or fingerprint as `cache ls` shows them.")
    older_than: float | None = setting(None, "Only what was not used for this many days.")
    yes: bool = setting(False, "Do not ask first.")
