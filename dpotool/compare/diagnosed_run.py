"""A diagnosis read from disk: its two tables opened once, and its tokens in a form that can be shown to a reader."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError, find_place
from dpotool.runs.about import TableAbout, read_about
from dpotool.runs.folder import RunFolder
from dpotool.runs.summaries import need_summary
from dpotool.runs.tables import read_table

_SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that show nothing, or change how the text around them is shown."""
_HARMLESS = "\n\r\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}\N{SOFT HYPHEN}"
PART_OF_CHARACTER = "▫"
"""Shown for a token that is a part of a character; the character is shown with the last of its tokens."""


@dataclass(frozen=True, eq=False)
class DiagnosedRun:
    """One model's diagnosis against its reference."""

    path: Path
    """Where the table of pairs is."""
    about: TableAbout
    summary: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> DiagnosedRun:
        """Reads what a diagnosis says of itself and its summary; raises DpotoolError when one cannot be read."""
        return cls(path, read_about(path, TableAbout), need_summary(path, "diagnosis"))

    @property
    def label(self) -> str:
        """What sentences and pictures call the model."""
        return self.about.label or self.path.stem

    @property
    def title(self) -> dict[str, str]:
        """Model and data, as every picture's title says them."""
        return {"model": self.label, "data": f"{self.about.data} [{self.about.split}]"}

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """The pairs whose displacement is a number, by pair_id, the one whose chosen answer fell most first."""
        frame = read_table(self.path)
        is_known = (frame["status"] == "ok") & np.isfinite(frame["chosen_displacement"].astype(float))
        return frame[is_known].set_index("pair_id", drop=False).sort_values("chosen_displacement", kind="stable")

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """A row per token of these pairs, with `change`, log pi - log pi_ref in nats."""
        frame = read_table(self._tokens_path)
        frame = frame[frame["pair_id"].isin(self.pairs.index)]
        return frame.assign(change=frame["logp"] - frame["ref_logp"])

    @property
    def _tokens_path(self) -> Path:
        return self.path.with_suffix(f".tokens{self.path.suffix}")

    @cached_property
    def _places(self) -> dict[Any, np.ndarray]:
        return {key: np.asarray(places) for key, places in self.tokens.groupby(["pair_id", "side"]).indices.items()}

    def get_tokens(self, pair_id: int, side: str) -> pd.DataFrame:
        """Returns the tokens of one answer in their order. Raises DpotoolError where the table has none of it."""
        if (pair_id, side) not in self._places:
            raise DpotoolError(
                f"holds no tokens of the {side} answer of pair {pair_id}",
                where=str(self._tokens_path),
                remedy="Run `dpotool diagnose` again",
            )
        return self.tokens.iloc[self._places[pair_id, side]].sort_values("position")

    def is_of(self, run: ScoredRun) -> bool:
        """Tells whether a scored run is of the same model and the same pairs."""
        if (self.about.data, self.about.split) != (run.data, run.split):
            return False
        mine, theirs = self.about.fingerprints.model, run.about.fingerprints.model
        if mine and theirs:
            return mine == theirs
        return run.path is not None and find_place(run.folder.path) == find_place(RunFolder.of_table(self.path).path)


def find_diagnosis(
    folders: Sequence[RunFolder], *, data: str | None = None, split: str | None = None, run: ScoredRun | None = None
) -> DiagnosedRun | None:
    """Returns the newest diagnosis of the first folder that has one of these pairs, or None.

    Args:
        run: scored run whose diagnosis is wanted rather than another's.
    """
    found = [DiagnosedRun.open(path) for folder in folders for path in folder.list_tables("diagnosis")]
    wanted = {"data": data, "split": split}
    found = [one for one in found if all(value in (None, getattr(one.about, key)) for key, value in wanted.items())]
    mine = [one for one in found if run is not None and one.is_of(run)]
    return next(iter([*mine, *found]), None)


def need_changes(diagnosis: DiagnosedRun) -> DiagnosedRun:
    """Returns a diagnosis that knows changes. Raises DpotoolError for one that was made without a reference."""
    if diagnosis.summary.get("chosen") is None or diagnosis.pairs.empty:
        raise DpotoolError(
            "this diagnosis knows of no change, as it was made without a reference",
            where=str(diagnosis.path),
            remedy="Run `dpotool diagnose` again with --reference",
        )
    return diagnosis


def show_text(text: str) -> str:
    """Returns a text whose control characters and signs that turn the direction of writing are shown as codes.

    Line breaks, tabs and the joiners that scripts and emoji need do not change.
    """
    return "".join(sign if sign in _HARMLESS else _encode(sign) for sign in text)


def _encode(sign: str) -> str:
    return f"⟨U+{ord(sign):04X}⟩" if unicodedata.category(sign) in _UNSEEN else sign


def make_visible(text: str | None) -> str:
    """Returns a token's text with every character that shows nothing, or turns the text around it, as a sign or code.

    A line break is ↵, other control and formatting characters become ⟨U+202E⟩. Letters of any script are left.
    """
    if not text:
        return PART_OF_CHARACTER
    return "".join(_SIGNS.get(sign) or _encode(sign) for sign in text)
