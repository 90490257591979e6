"""From a data argument to tokenized pairs in one call: what every command that needs pairs does first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpotool.data.checks.registry import describe_counts
from dpotool.data.pairs import PairSet, PreferenceData
from dpotool.data.sources import load_preferences
from dpotool.data.tokenization import tokenize_preferences
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
