"""Pairs ready for a model: from a data argument to token ids of at most a maximum length, and counts of what happened.

    pair_set = load_pair_set(settings, tokenizer, max_length=1024, seed=42)

Every command that needs pairs calls this first. How ids and boundary come about is in encoding.py; here pairs are
fitted to the length, excluded with a reason, counted. Truncation never touches a completion: `trim-prompt` drops tokens
from the prompt's start until the longer of the two sequences fits, `exclude` leaves the pair out instead. TRL truncates
sequences, completions included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dpotool.data.checks.labels import find_identical, find_repeats
from dpotool.data.checks.registry import describe_counts
from dpotool.data.encoding import EncodedPair, PairEncoder
from dpotool.data.pairs import PairCounts, PairSet, PreferenceData, PreferencePair, TokenizedPair, hash_prompt
from dpotool.data.sources import load_preferences
from dpotool.data.templates import FROZEN_DATE
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.progress import SILENT, Progress
from dpotool.settings.shared import DataSettings
from dpotool.wording import count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_pair_set(
    settings: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    seed: int,
    default_split: str = "test",
    progress: Progress = SILENT,
) -> PairSet:
    """Loads and tokenizes the pairs that the settings name, and notes what was found and what was left out."""
    data = load_rows(settings, seed=seed, default_split=default_split)
    pair_set = tokenize_preferences(data, tokenizer, max_length=max_length, truncation=settings.truncation)
    progress.note(describe_pair_set(pair_set))
    if pair_set.source.unread:
        columns = ", ".join(pair_set.source.unread)
        progress.warn(f"{settings.data}: the columns {columns} are not read. Put them into prompt if they belong there")
    if pair_set.source.template_date:
        progress.note(
            f"the chat template prints today's date; every prompt contains {pair_set.source.template_date} instead"
        )
    return pair_set


def load_rows(settings: DataSettings, *, seed: int, default_split: str) -> PreferenceData:
    """Loads the rows that the settings name, as text."""
    return load_preferences(
        settings.data,
        split=settings.split,
        limit=settings.limit,
        seed=seed if settings.split_seed is None else settings.split_seed,
        test_fraction=settings.test_fraction,
        skip_invalid=settings.skip_invalid,
        default_split=default_split,
    )


def describe_pair_set(pair_set: PairSet) -> str:
    """Returns one line: where the pairs are from, how the columns were read, and what happened to them."""
    source, counts = pair_set.source, pair_set.counts
    mapping = ", ".join(field if field == column else f"{field}={column}" for field, column in source.columns.items())
    parts = [f"{source.name} [{source.split}]: {count(counts.n_pairs, 'pair')}, {source.format} ({mapping})"]
    parts += [f"{n} left out: {reason}" for reason, n in counts.n_excluded.items()]
    parts += describe_counts(counts)
    return "; ".join(parts)


TRUNCATIONS = ("trim-prompt", "exclude")
TOO_LONG = "longer than the maximum length"

_CHUNK_PAIRS = 512


def tokenize_preferences(
    data: PreferenceData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None,
    truncation: str = "trim-prompt",
) -> PairSet:
    """Tokenizes pairs in source order.

    Args:
        max_length: tokens of prompt + completion; None for no limit.
        truncation: 'trim-prompt' drops tokens from the start of the prompt, behind its BOS if it has one, until the
            longer sequence fits with at least one prompt token (besides BOS) left; a pair that cannot fit so is
            excluded. 'exclude' excludes every pair that is too long.

    Returns:
        The pairs that can be used; the others in `excluded` by pair_id with the reason, invalid rows among them.

    Raises:
        DpotoolError: unknown truncation, no EOS token, no chat template for conversational data, or not one pair left
            (where that is for the maximum length, it says which would fit).
    """
    if truncation not in TRUNCATIONS:
        raise DpotoolError(
            f"unknown truncation {truncation!r}", where="--truncation", remedy=suggest_nearest(truncation, TRUNCATIONS)
        )
    encoder = PairEncoder(tokenizer)
    fitter = _Fitter(encoder, max_length, is_trimming=truncation == "trim-prompt")
    for start in range(0, len(data.pairs), _CHUNK_PAIRS):
        fitter.add(data.pairs[start : start + _CHUNK_PAIRS])
    excluded = dict(sorted((data.invalid | fitter.excluded).items()))
    if not fitter.pairs:
        raise _nothing_left(data, excluded, fitter, max_length)
    counts = PairCounts(
        n_rows=data.n_rows,
        n_pairs=len(fitter.pairs),
        n_excluded=dict(Counter(reason.partition(": ")[0] for reason in excluded.values())),
        n_truncated=fitter.n_truncated,
        n_boundary_merged=fitter.n_merged,
        n_identical=len(find_identical({pair.pair_id: (pair.chosen_ids, pair.rejected_ids) for pair in fitter.pairs})),
        n_duplicate=len(
            find_repeats({pair.pair_id: (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in fitter.pairs})
        ),
    )
    date = f"{FROZEN_DATE:%Y-%m-%d}" if encoder.prints_date else None
    return PairSet(fitter.pairs, excluded, counts, replace(data.source, template_date=date))


class _Fitter:
    """Collects the pairs that fit, and why the others do not."""

    def __init__(self, encoder: PairEncoder, max_length: int | None, *, is_trimming: bool) -> None:
        self._encoder = encoder
        self._max_length = max_length
        self._is_trimming = is_trimming
        self._known_ids: dict[int, int] = {}
        self.pairs: list[TokenizedPair] = []
        self.excluded: dict[int, str] = {}
        self.n_truncated = 0
        self.n_merged = 0
        self.fitting_lengths: list[int] = []
        """For each pair found too long, the maximum length from which it could be used."""

    def add(self, pairs: Sequence[PreferencePair]) -> None:
        for pair, encoded in zip(pairs, self._encoder.encode(pairs), strict=True):
            if isinstance(encoded, str):
                self.excluded[pair.pair_id] = encoded
                continue
            prompt_ids = self._fit_prompt(encoded)
            if prompt_ids is None:
                self.excluded[pair.pair_id] = TOO_LONG
                continue
            self.n_truncated += len(prompt_ids) < len(encoded.prompt_ids)
            self.n_merged += encoded.is_merged
            ids = (self._compact(prompt_ids), self._compact(encoded.chosen_ids), self._compact(encoded.rejected_ids))
            scores = (pair.score_chosen, pair.score_rejected)
            self.pairs.append(TokenizedPair(pair.pair_id, *ids, *scores, prompt_id=hash_prompt(pair.prompt)))

    def _fit_prompt(self, encoded: EncodedPair) -> list[int] | None:
        """Returns the prompt after truncation, or None if the pair does not fit."""
        prompt_ids = encoded.prompt_ids
        longest = max(len(encoded.chosen_ids), len(encoded.rejected_ids))
        if self._max_length is None or len(prompt_ids) + longest <= self._max_length:
            return prompt_ids
        least = self._encoder.least_length(encoded, is_trimming=self._is_trimming)
        if self._max_length < least:
            self.fitting_lengths.append(least)
            return None
        n_bos, room = int(self._encoder.keeps_bos(prompt_ids)), self._max_length - longest
        return prompt_ids[:n_bos] + prompt_ids[len(prompt_ids) - room + n_bos :]

    def _compact(self, ids: list[int]) -> tuple[int, ...]:
        """A tuple that shares one int object per token id: at 8 instead of 36 bytes a token, large sets stay small."""
        return tuple(map(self._known_ids.setdefault, ids, ids))


def _nothing_left(
    data: PreferenceData, excluded: dict[int, str], fitter: _Fitter, max_length: int | None
) -> DpotoolError:
    where = f"{data.source.data} [{data.source.split}]"
    if not fitter.fitting_lengths:
        first_id, reason = next(iter(excluded.items()), (0, "no rows"))
        what = f"not one of {count(data.n_rows, 'pair')} can be used: pair {first_id}: {reason}"
        return DpotoolError(what, where=where, remedy="Mend the rows, or name other data with --data")
    return DpotoolError(
        f"--max-length {max_length} is too small for every pair",
        where=where,
        expected=f"at least {min(fitter.fitting_lengths)} for one pair to fit, {max(fitter.fitting_lengths)} for all",
    )
