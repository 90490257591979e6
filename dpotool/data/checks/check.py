"""What a check of preference data is: an entry with name, severity, why it matters, and the function that looks.

A check receives the `Material` (the pairs and what was made of them) and returns what it `Found`: the rows concerned by
their number, each with what is to be seen there, and figures of the whole set. The registry lists the checks; the
command, its pages and what `train` prints at its start read them from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from dpotool.data.pairs import PreferenceData, PreferencePair, Text
from dpotool.data.sources import write_out
from dpotool.progress import SILENT, Progress

if TYPE_CHECKING:
    from dpotool.data.checks.token_view import TokenView

SEVERITIES = ("error", "warning", "note")
"""An error makes pairs useless or numbers wrong; a warning deserves a look; a note is information."""
GROUPS = {
    "labels": "Labels",
    "splits": "Splits",
    "tokens": "Tokens",
    "shortcuts": "Shortcuts",
    "form": "Language and form",
}
OTHER_PAIRS, MODEL, SCORES = "other pairs to compare with (--eval-data)", "a model (--model)", "scores"
SHORT = 70


@dataclass(frozen=True, slots=True)
class Answers:
    """One pair as plain text."""

    pair_id: int
    prompt: str
    chosen: str
    rejected: str

    @property
    def sides(self) -> dict[str, str]:
        """The two answers by their names."""
        return {"chosen": self.chosen, "rejected": self.rejected}

    @property
    def key(self) -> tuple[str, str, str]:
        return self.prompt, self.chosen, self.rejected

    def show(self) -> str:
        """Returns the pair in one line."""
        return f"prompt {quote(self.prompt)}, chosen {quote(self.chosen)}, rejected {quote(self.rejected)}"


@dataclass
class Material:
    """What the checks look at."""

    data: PreferenceData
    others: Mapping[str, PreferenceData] = field(default_factory=dict)
    """Pairs of other splits by name, which should have no prompt in common with these."""
    tokens: TokenView | None = None
    """The pairs as a model's tokenizer and template make them; None without a model."""
    seed: int = 42
    progress: Progress = SILENT

    @cached_property
    def answers(self) -> list[Answers]:
        """Every pair as plain text, in source order."""
        return [
            Answers(pair.pair_id, write_out(pair.prompt), write_answer(pair.chosen), write_answer(pair.rejected))
            for pair in self.data.pairs
        ]

    @cached_property
    def by_id(self) -> dict[int, Answers]:
        return {each.pair_id: each for each in self.answers}

    @cached_property
    def by_prompt(self) -> dict[str, list[Answers]]:
        """The pairs of each prompt."""
        groups: dict[str, list[Answers]] = {}
        for each in self.answers:
            groups.setdefault(each.prompt, []).append(each)
        return groups

    @property
    def scored(self) -> list[PreferencePair]:
        """The pairs with a score of both answers."""
        return [pair for pair in self.data.pairs if None not in (pair.score_chosen, pair.score_rejected)]

    def has(self, need: str) -> bool:
        """Tells whether what a check needs is there."""
        return {"": True, OTHER_PAIRS: bool(self.others), MODEL: self.tokens is not None, SCORES: bool(self.scored)}[
            need
        ]


@dataclass(frozen=True, slots=True)
class Found:
    """The rows that a check reports, and what it says of the whole set."""

    rows: Mapping[int, str]
    """Row -> what is to be seen there; empty where the pair itself shows it."""
    says: str = ""
    """One sentence on the whole set, with its figures."""
    figures: Mapping[str, float] = field(default_factory=dict)
    is_cause_for_concern: bool = True
    """False where the figures are measured and lie where they should."""


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of finding."""

    name: str
    group: str
    severity: str
    title: str
    """What is so, as a row of a table says it."""
    why: str
    """Why it matters, in a sentence."""
    remedy: str
    """What to do, in a sentence."""
    find: Callable[[Material], Found | None]
    needs: str = ""
    """What it cannot do without: one of OTHER_PAIRS, MODEL, SCORES, or nothing."""
    is_of_set: bool = False
    """It says something of all pairs together: there are no rows to leave out."""
    counted_as: str = ""
    """The field of `PairCounts` with the same count, which `train` and `score` print."""
    counted_word: str = ""
    """What they call it."""


def write_answer(answer: Text) -> str:
    """Returns an answer as plain text: what its only message says, or several under their roles."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0].get("content"), str):
        return str(answer[0]["content"])
    return write_out(answer)


def shorten(text: str, longest: int = SHORT) -> str:
    """Returns a text on one line, without its middle if it is long, as both ends say more than the beginning alone."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 3]} … {line[-end:]}"


def quote(text: str, longest: int = SHORT) -> str:
    """Returns a shortened text between quotes."""
    return f"“{shorten(text, longest)}”"


def show_place(text: str, start: int, end: int, margin: int = 30) -> str:
    """Returns the text around a position."""
    before, after = "…" if start > margin else "", "…" if end + margin < len(text) else ""
    return f"“{before}{' '.join(text[max(0, start - margin) : end + margin].split())}{after}”"
