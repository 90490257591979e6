"""How counts and texts read in every sentence, table and picture."""

from __future__ import annotations


def count(n: int, one: str, many: str | None = None) -> str:
    """Returns "1 run" or "2,000 runs".

    Args:
        one: the words for a single one; a verb may follow the noun, as in "pair is".
        many: the words for any other number; by default `one` with an s.
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def capitalize(text: str) -> str:
    """Returns the text with a capital letter at its beginning and everything else unchanged."""
    return text[:1].upper() + text[1:]
