"""A scored run: its score table, read once, and what is derived from it; for comparison, plots and report.

Accuracy and margins are unshifted whatever lambda the model was trained with; a margin of exactly zero counts as wrong.
Rows without usable numbers are left out and counted by reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpotool.errors import DpotoolError
from dpotool.runs.about import ScoreAbout, read_about
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import read_score_summary
from dpotool.runs.tables import read_table
from dpotool.stats.bootstrap import count_prompts, read_clusters
from dpotool.stats.intervals import Interval
from dpotool.wording import count

NOT_FINITE = "log-likelihood is not finite"
SIDES = ("chosen", "rejected")
_LOGPS = ("chosen_logps", "rejected_logps")
_TOKENS = ("chosen_tokens", "rejected_tokens")
_REF_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")
_REWARDS = ("chosen_rewards", "rejected_rewards", "reward_margins")
BEYOND_NOISE = "reward_accuracy_beyond_noise"
_ROUNDING = 1e-6
"""Relative to the largest number of a row; what is derived from it in float64 is off by far less."""
DISPLACEMENTS = ("chosen_displacement", "rejected_displacement")


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """One model's scores of one set of pairs. `open` reads it from disk; from a frame in memory it is made directly."""

    table: pd.DataFrame
    """All rows, columns of SCORE_SCHEMA; displacement is computed, as older tables lack it."""
    label: str = ""
    """What tables, sentences and pictures call the run."""
    about: ScoreAbout = field(default_factory=ScoreAbout)
    """What the table says of itself: model, reference, pairs, and all settings it was made with."""
    noise: Mapping[str, Any] | None = None
    """What rounding alone does to a score (`compare.noise`); None where nobody measured it."""
    recorded: Mapping[str, Any] | None = None
    """The summary written beside the table; None where it is missing or older. `summaries.get_summary` gives one."""
    path: Path | None = None
    """Where the table is; None for one that was never written."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """The folder's run.yaml; empty where there is none."""

    @cached_property
    def intervals(self) -> dict[tuple[int, int], dict[str, Interval]]:
        """What `summaries.measure` has bootstrapped of this run, by number of resamples and seed."""
        return {}

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", add_displacement(self.table))

    @classmethod
    def open(cls, path: Path, label: str = "") -> ScoredRun:
        """Reads a score table with its metadata and its summary; raises DpotoolError when one cannot be read."""
        about, summary = read_about(path, ScoreAbout), read_score_summary(path)
        folder = RunFolder.of_table(path)
        manifest = folder.read_manifest() if folder.manifest_path.exists() else {}
        noise = (summary or {}).get("noise_floor")
        table = read_table(path)
        _check_derived(table, about.beta, path)
        return cls(table, label or about.label or path.stem, about, noise, summary, path, manifest)

    def restrict(self, pair_ids: Iterable[int] | pd.Index) -> ScoredRun:
        """Returns the run with the scored pairs of these ids alone, in their order."""
        rows = self.scored.loc[pd.Index(pair_ids)]
        return replace(self, table=rows.reset_index(drop=True), recorded=None)

    @cached_property
    def folder(self) -> RunFolder:
        """The run folder of the table; raises ValueError for a table in memory."""
        if self.path is None:
            raise ValueError(f"{self.label or 'this run'} is not on disk")
        return RunFolder.of_table(self.path)

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of its training: in run.yaml, or of a model from elsewhere, as given to `score`."""
        settings = self.about.settings or {}
        given = {name: settings[name] for name in ("loss", "lambda_") if settings.get(name) is not None}
        return {**(self.manifest.get("config") or {}), **given}

    @property
    def beta(self) -> float | None:
        """Scale of the rewards; None where it is not known."""
        return self.about.beta

    @property
    def data(self) -> str | None:
        """Name of the data whose pairs were scored."""
        return self.about.data

    @property
    def split(self) -> str | None:
        """Split of that data."""
        return self.about.split

    @cached_property
    def _parts(self) -> tuple[pd.DataFrame, dict[str, int]]:
        return split_scored(self.table)

    @cached_property
    def scored(self) -> pd.DataFrame:
        """The rows that numbers can be made of, by pair_id."""
        return self._parts[0].set_index("pair_id", drop=False)

    @property
    def excluded(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return self._parts[1]

    @property
    def n(self) -> int:
        """Scored pairs."""
        return len(self.scored)

    def need_pairs(self) -> None:
        """Raises DpotoolError, with the reasons, where no row has numbers."""
        if self.n:
            return
        raise DpotoolError(
            f"no scored pair among {count(len(self.table), 'row')}",
            where=str(self.path or self.label),
            got=", ".join(f"{reason} ({number})" for reason, number in self.excluded.items()) or None,
            remedy="Score it again, on other pairs where these cannot be scored",
        )

    @cached_property
    def is_referenced(self) -> bool:
        """Whether the scored rows have reference values."""
        return has_reference(self.scored)

    @cached_property
    def clusters(self) -> np.ndarray | None:
        """Which prompt each scored pair belongs to; None for a table that does not say."""
        return read_clusters(self.scored)

    @cached_property
    def n_prompts(self) -> int | None:
        """How many prompts the scored pairs have; None for a table that does not say."""
        return count_prompts(self.scored)

    @cached_property
    def noise_floor(self) -> float | None:
        """Largest difference in margin that rounding alone brings about; None where nobody measured it."""
        floor = (self.noise or {}).get("reward_margins")
        return None if floor is None else float(floor["largest"])

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Every number of a pair, one value per scored pair; what is not known of all of them is not there.

        Nats, float64: `*_logps`, `ref_*_logps`, `*_displacement` (policy minus reference), `*_rewards` and
        `reward_margins` (beta times). Tokens: `*_tokens`. True or false: `reward_accuracy` (margin above 0),
        `reward_accuracy_beyond_noise` (above the noise floor, where that is known) and `*_displaced_share`
        (displacement below 0).
        """
        names = [*_LOGPS, *_TOKENS]
        if self.n:
            names += [*_REWARDS, *(_REF_LOGPS if self.is_referenced else ())]
            names += DISPLACEMENTS if self.is_referenced else ()
        known = [name for name in names if self.scored[name].notna().all()]
        columns: dict[str, NDArray[Any]] = {name: self.scored[name].to_numpy(dtype=np.float64) for name in known}
        for side in SIDES:
            if f"{side}_displacement" in columns:
                columns[f"{side}_displaced_share"] = columns[f"{side}_displacement"] < 0
        if "reward_margins" in columns:
            columns["reward_accuracy"] = columns["reward_margins"] > 0
            if self.noise_floor is not None:
                columns[BEYOND_NOISE] = columns["reward_margins"] > self.noise_floor
        return columns


def add_displacement(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a score table with `*_displacement`, policy minus reference in nats; null where one is not known."""
    return table.assign(
        **{f"{side}_displacement": table[f"{side}_logps"] - table[f"ref_{side}_logps"] for side in SIDES}
    )


def derive_rewards(frame: pd.DataFrame, beta: float) -> dict[str, Any]:
    """Returns rewards = beta * log-ratio, unshifted, their difference, and displacement = policy minus reference."""
    ratios = {side: frame[f"{side}_logps"] - frame[f"ref_{side}_logps"] for side in SIDES}
    chosen, rejected = (beta * ratio for ratio in ratios.values())
    return {
        "chosen_rewards": chosen,
        "rejected_rewards": rejected,
        "reward_margins": chosen - rejected,
        **{f"{side}_displacement": ratio for side, ratio in ratios.items()},
    }


def _check_derived(table: pd.DataFrame, beta: float | None, path: Path) -> None:
    """Raises DpotoolError where a number of a pair is not what the log-likelihoods beside it make it.

    Without a beta rewards are not looked at, but the margin has to be their difference.
    """
    derived = derive_rewards(table, np.nan if beta is None else beta)
    derived["reward_margins"] = table["chosen_rewards"] - table["rejected_rewards"]
    size = 1 + table[[*_LOGPS, *_REF_LOGPS, *_REWARDS]].abs().max(axis=1).fillna(0.0)
    for name, expected in derived.items():
        is_off = np.asarray((table[name] - expected).abs() > _ROUNDING * size)
        if is_off.any():
            row = int(is_off.argmax())
            raise DpotoolError(
                f"{name} of pair {table['pair_id'].iloc[row]} does not follow from the numbers beside it",
                where=str(path),
                expected=f"{expected.iloc[row]:.6g}",
                got=f"{table[name].iloc[row]:.6g}",
                remedy="Score it again",
            )


def split_scored(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Returns the rows of a score table that numbers can be made of, and how many others there are by reason.

    A reference or reward that is null for every pair is no reason: there was none. One that is null for some is one. In
    a table of rewards alone, as imported ones can be, the rewards must be numbers.
    """
    is_ok = frame["status"] == "ok"
    needed = list(_LOGPS)
    if _has_only_rewards(frame[is_ok]):
        needed = ["chosen_rewards", "rejected_rewards"]
    needed += [name for name in (*_REF_LOGPS, *_REWARDS) if frame.loc[is_ok, name].notna().any()]
    needed += ["reward_margins"] if has_reference(frame[is_ok]) else []  # whoever knows one writes the other
    is_finite = pd.Series(np.isfinite(frame[needed].to_numpy(dtype=np.float64)).all(axis=1), index=frame.index)
    reasons = frame.loc[~is_ok, "status"].value_counts().to_dict()
    n_not_finite = int((is_ok & ~is_finite).sum())
    if n_not_finite:
        reasons[NOT_FINITE] = n_not_finite
    return frame[is_ok & is_finite], {str(reason): int(number) for reason, number in reasons.items()}


def has_reference(scored: pd.DataFrame) -> bool:
    """Whether the scored rows of a table have reference values."""
    return bool(len(scored)) and bool(scored[list(_REF_LOGPS)].notna().all(axis=None))


def _has_only_rewards(rows: pd.DataFrame) -> bool:
    """Whether a table was made elsewhere and has rewards without the log-likelihoods behind them."""
    is_without = rows[list(_LOGPS)].isna().all(axis=None)
    return bool(len(rows)) and bool(is_without and rows["chosen_rewards"].notna().any())
