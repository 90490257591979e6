"""Preference pairs from what a user names with `--data`: a file, a saved Arrow folder, a hub id or `builtin:demo`.

load_preferences("pairs.jsonl")
load_preferences("HuggingFaceH4/ultrafeedback_binarized", split="test_prefs", limit=500)
load_preferences("argilla/Capybara-Preferences", split="test", test_fraction=0.05)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from dpotool.data.columns import Layout, convert_row, detect_layout
from dpotool.data.files import SourceRow
from dpotool.data.origins import Origin, open_origin
from dpotool.data.pairs import DataSource, PreferenceData, PreferencePair, Text
from dpotool.data.rows import InvalidRowError
from dpotool.data.splits import check_fraction, choose_split, choose_split_to_cut, cut_test, is_test_name
from dpotool.errors import DpotoolError
from dpotool.wording import count


def load_preferences(
    data: str,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 42,
    test_fraction: float | None = None,
    skip_invalid: bool = False,
    default_split: str = "test",
) -> PreferenceData:
    """Reads preference pairs, as text, in source order.

    Args:
        data: a .jsonl, .json, .parquet or .csv file, a folder written by `datasets.save_to_disk`, a hub id
            ('org/name', or 'org/name:config') or 'builtin:demo'.
        split: which split; None takes `default_split` where the source has several, else its only one.
        limit: read the first rows of the split only.
        seed: of the cut made by `test_fraction`; nothing else here is random.
        test_fraction: cut a source without a test split into 'train' and 'test', the test part this share of its rows,
            rounded, and rows with the same prompt on the same side.
        skip_invalid: leave malformed rows out and list them in `invalid` instead of raising.
        default_split: 'test' for what scores, 'train' for what trains.

    Returns:
        The pairs; `pair_id` is the row number in the split of the source, before the limit and before the cut.

    Raises:
        DpotoolError: source, split or column not found, or malformed rows; names the first and how many more there are.
    """
    if limit is not None and limit < 1:
        raise DpotoolError("--limit is out of range", expected="at least 1", got=str(limit))
    origin = open_origin(data)
    if test_fraction is None:
        name = choose_split(list(origin.splits), split, default_split, data)
        rows = list(islice(origin.splits[name](), limit))
        layout, outcomes = _convert_rows(rows, data)
    else:
        check_fraction(test_fraction)
        name = choose_split(("train", "test"), split, default_split, f"{data} cut by --test-fraction")
        rows = list(origin.splits[choose_split_to_cut(list(origin.splits), data)]())
        layout, outcomes = _convert_rows(rows, data)
        _refuse_invalid(rows, outcomes, data, skip_invalid)  # before a cut that they would leave without pairs
        groups = [_group(outcome, row) for outcome, row in zip(outcomes, rows, strict=True)]
        is_test = cut_test(groups, test_fraction, seed, data)
        kept = [index for index, test in enumerate(is_test) if test == (name == "test")][:limit]
        rows, outcomes = [rows[index] for index in kept], [outcomes[index] for index in kept]
    return _collect(origin, name, layout, rows, outcomes, skip_invalid)


def convert_preferences(rows: Iterable[Mapping[str, Any]], name: str) -> PreferenceData:
    """Turns rows that are in memory (dictionaries, a `datasets.Dataset`) into pairs, as `load_preferences` would.

    Args:
        name: of the data, for files and titles.

    Raises:
        DpotoolError: as `load_preferences`.
    """
    sources = [SourceRow(number, dict(row)) for number, row in enumerate(rows)]
    layout, outcomes = _convert_rows(sources, name)
    return _collect(Origin(name, name, {}), "all", layout, sources, outcomes, skip_invalid=False)


def has_test_split(data: str, test_fraction: float | None = None) -> bool:
    """True if `load_preferences(data, default_split="test")` reads other pairs than `default_split="train"` does.

    Raises:
        DpotoolError: the source is not found.
    """
    if test_fraction is not None:
        return True
    names = list(open_origin(data).splits)
    return len(names) > 1 and any(is_test_name(name) for name in names)


def _group(outcome: PreferencePair | str, row: SourceRow) -> str:
    """Rows with the same key stay on one side of a cut: it is the prompt; a row without one has a key of its row."""
    if isinstance(outcome, str):
        return f"row {row.row_id}"
    return json.dumps(outcome.prompt, sort_keys=True)


def _convert_rows(rows: Sequence[SourceRow], data: str) -> tuple[Layout, list[PreferencePair | str]]:
    """Returns for each row its pair, or the reason why it is none."""
    if not rows:
        raise DpotoolError("holds no rows", where=data, remedy="Name data that does with --data, or another --split")
    values = [row.value for row in rows if row.value is not None]
    if not values:  # not one row could be read, so there are no columns to complain about
        return Layout("text", {}), [row.problem or "" for row in rows]
    layout = detect_layout(values, data)
    return layout, [_convert(row, layout) for row in rows]


def _convert(row: SourceRow, layout: Layout) -> PreferencePair | str:
    if row.value is None:
        return row.problem or "unreadable"
    try:
        return convert_row(row.row_id, row.value, layout)
    except InvalidRowError as error:
        return str(error)


def _collect(
    origin: Origin,
    split: str,
    layout: Layout,
    rows: Sequence[SourceRow],
    outcomes: Sequence[PreferencePair | str],
    skip_invalid: bool,
) -> PreferenceData:
    pairs = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    invalid = _refuse_invalid(rows, outcomes, origin.data, skip_invalid)
    fingerprint = _fingerprint(outcomes)
    source = DataSource(origin.data, origin.name, split, layout.format, layout.columns, fingerprint, layout.unread)
    return PreferenceData(pairs, source, len(rows), {row.row_id: reason for row, reason in invalid})


def _refuse_invalid(
    rows: Sequence[SourceRow], outcomes: Sequence[PreferencePair | str], data: str, skip_invalid: bool
) -> list[tuple[SourceRow, str]]:
    """Returns the malformed rows, each with its reason, where they may be left out and others are left; else raises."""
    invalid = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if isinstance(outcome, str)]
    if invalid and not (skip_invalid and len(invalid) < len(rows)):
        raise _invalid_rows(invalid, len(rows), data)
    return invalid


def _invalid_rows(invalid: Sequence[tuple[SourceRow, str]], n_rows: int, data: str) -> DpotoolError:
    (first, reason), n_more = invalid[0], len(invalid) - 1
    if len(invalid) == n_rows:
        remedy = "No row is well formed"
    elif n_more:
        rows = count(n_more, "more row is", "more rows are")
        remedy = f"{rows} malformed. Mend them, or pass --skip-invalid to leave them out"
    else:
        remedy = "No other row is malformed. Mend it, or pass --skip-invalid to leave it out"
    return DpotoolError(reason, where=first.locate(data), remedy=remedy)


def _fingerprint(outcomes: Sequence[PreferencePair | str]) -> str:
    """Hash of what was read, row numbers included; the same rows give the same hash from any file format."""
    digest = hashlib.sha256()
    for outcome in outcomes:
        fields = outcome if isinstance(outcome, str) else [getattr(outcome, name) for name in PreferencePair.__slots__]
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def load_texts(
    rows: Mapping[str, Any], split: str | None, pair_ids: Collection[int], fingerprint: str | None = None
) -> dict[int, PreferencePair]:
    """Reads the pairs with these row numbers again.

    Args:
        rows: what was read: `data`, `limit`, `test_fraction`, `seed`, `split_seed`, `skip_invalid`.
        fingerprint: of the rows as they were then.

    Raises:
        DpotoolError: the data is not found, cannot be read, or has changed.
    """
    found = load_preferences(
        rows["data"],
        split=split,
        limit=rows.get("limit"),
        seed=next((rows[name] for name in ("split_seed", "seed") if rows.get(name) is not None), 42),
        test_fraction=rows.get("test_fraction"),
        skip_invalid=bool(rows.get("skip_invalid")),
    )
    if fingerprint not in (None, found.source.fingerprint):
        raise DpotoolError("the data has changed since it was scored", where=str(rows["data"]), remedy="Score it again")
    wanted = set(pair_ids)
    return {pair.pair_id: pair for pair in found.pairs if pair.pair_id in wanted}


def write_out(text: Text) -> str:
    """Returns a prompt or completion as plain text, each chat message under its role."""
    if isinstance(text, str):
        return text
    return "\n\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in text)
