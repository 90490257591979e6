"""The records that flow through dpotool: a preference pair as text, the same pair as token ids, and sets of them.

Nothing is dropped silently on the way from rows to pairs: what was left out is in `invalid` or `excluded` by row number
with its reason, and what is odd but still used (truncated, merged boundary, identical, duplicate) is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

Message = dict[str, Any]  # {"role": ..., "content": ...}, and what else the chat template reads
Text = str | list[Message]


def hash_prompt(prompt: Text) -> str:
    """Returns 16 hexadecimal digits that tell whether two pairs have the same prompt, text or messages."""
    return hashlib.sha256(json.dumps(prompt, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One row: a prompt with a chosen and a rejected completion, as strings or as lists of chat messages."""

    pair_id: int
    """Row number in the source split, from 0; survives `--limit` and exclusions."""
    prompt: Text
    chosen: Text
    rejected: Text
    score_chosen: float | None = None
    score_rejected: float | None = None
    template_kwargs: dict[str, Any] | None = None
    """What the row itself passes to the chat template (`tools`, `chat_template_kwargs`), as TRL does."""

    @property
    def is_conversational(self) -> bool:
        return isinstance(self.chosen, list)


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """One pair as token ids. prompt + chosen and prompt + rejected are the two sequences; completions end in EOS."""

    pair_id: int
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    score_chosen: float | None = None
    score_rejected: float | None = None
    prompt_id: str | None = field(default=None, compare=False)
    """Hash of the prompt as it stood in the data, before tokens were trimmed off it: equal for equal prompts."""

    @property
    def n_common(self) -> int:
        """Tokens of the shorter completion, EOS included."""
        return min(len(self.chosen_ids), len(self.rejected_ids))

    def cut_to_common(self) -> TokenizedPair:
        """Returns the pair with both completions as long as the shorter one."""
        n_tokens = self.n_common
        return replace(self, chosen_ids=self.chosen_ids[:n_tokens], rejected_ids=self.rejected_ids[:n_tokens])

    @property
    def longest(self) -> int:
        """Tokens in the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where pairs came from, as recorded in run.yaml and in every summary."""

    data: str
    """As the user named it: a path, a hub id or builtin:demo."""
    name: str
    """Short name for files and titles, e.g. 'tldr_test' or 'demo'."""
    split: str
    format: str
    """Which of the known formats the columns were recognised as."""
    columns: dict[str, str]
    """dpotool field -> column of the source it was read from."""
    fingerprint: str
    """Hash of the rows that were read, so that two runs can tell whether they saw the same data."""
    unread: tuple[str, ...] = ()
    """Columns that are filled and sound like part of the prompt, but are not read."""
    template_date: str | None = None
    """The date that is printed by a chat template that prints today's."""


@dataclass(frozen=True, slots=True)
class PreferenceData:
    """Pairs as text, with the rows that were left out as invalid (`--skip-invalid`) and why."""

    pairs: list[PreferencePair]
    source: DataSource
    n_rows: int
    """Rows that were read, after --limit."""
    invalid: dict[int, str] = field(default_factory=dict)
    """pair_id -> reason."""


@dataclass(frozen=True, slots=True)
class PairCounts:
    """What happened on the way from rows to tokenized pairs; shown in every summary."""

    n_rows: int
    n_pairs: int
    n_excluded: dict[str, int]
    """reason -> how many rows were left out for it."""
    n_truncated: int = 0
    n_boundary_merged: int = 0
    n_identical: int = 0
    """Pairs whose chosen and rejected completions are the same tokens. They stay in and always count as ties."""
    n_duplicate: int = 0
    """Pairs that repeat an earlier pair token for token. They stay in."""

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PairSet:
    """Tokenized pairs in source order, ready to be scored or trained on."""

    pairs: list[TokenizedPair]
    excluded: dict[int, str]
    """pair_id -> reason, for rows that cannot be used (invalid, or do not fit)."""
    counts: PairCounts
    source: DataSource

    def without(self, reasons: Mapping[int, str]) -> PairSet:
        """Returns the set without some of its pairs, by pair_id, counted and listed by their reasons."""
        n_excluded = Counter(self.counts.n_excluded) + Counter(reasons.values())
        pairs = [pair for pair in self.pairs if pair.pair_id not in reasons]
        counts = replace(self.counts, n_pairs=len(pairs), n_excluded=dict(n_excluded))
        return PairSet(pairs, dict(sorted((self.excluded | dict(reasons)).items())), counts, self.source)
