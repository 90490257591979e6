"""Reads the texts of pairs again by their row numbers, to show them to a reader."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dpotool.data.pairs import PreferencePair, Text
from dpotool.data.sources import load_preferences
from dpotool.errors import DpotoolError


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
