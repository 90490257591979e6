"""What `dpotool cache ls|verify|clear` can be told. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from dpotool.settings import ComputeSettings, DataSettings, ScreenSettings, Settings, setting


@dataclass(frozen=True, kw_only=True)
class CacheListConfig(ScreenSettings):
    """Settings of a listing: only how much it prints."""


@dataclass(frozen=True, kw_only=True)
class CacheVerifyConfig(ComputeSettings, DataSettings):
    """Settings of one check."""

    data: str | None = setting(  # type: ignore[assignment]  # resolved as `score` does
        None, "With --recompute: the pairs as they were scored. The default is the pairs that the run was evaluated on."
    )
    model: str | None = setting(
        None, "Check only the values of this model. Give a name, path or fingerprint as `cache ls` shows it."
    )
    recompute: int = setting(
        0,
        "Compute N pairs of --model again and print the largest difference. "
        "Texts are not stored, so they come from --data.",
    )


@dataclass(frozen=True, kw_only=True)
class CacheClearConfig(Settings):
    """What to delete; nothing said: everything."""

    model: str | None = setting(
        None, "Delete only the values of this model. Give a name, path or fingerprint as `cache ls` shows it."
    )
    older_than: float | None = setting(None, "Delete only values that were not used for this many days.")
    yes: bool = setting(False, "Delete without asking.")
