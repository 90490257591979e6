"""Counts and texts as every sentence has them."""

from __future__ import annotations

import pytest

from dpotool.wording import capitalize, count


@pytest.mark.parametrize(
    ("n", "words", "expected"),
    [
        (1, ("pair",), "1 pair"),
        (0, ("pair",), "0 pairs"),
        (60_000, ("pair",), "60,000 pairs"),
        (1, ("reply", "replies"), "1 reply"),
        (2, ("pair is", "pairs are"), "2 pairs are"),
    ],
)
def test_nouns_agree_with_their_number(n: int, words: tuple[str, ...], expected: str) -> None:
    assert count(n, *words) == expected


def test_only_the_first_letter_changes() -> None:
    assert capitalize("log pi of DPO") == "Log pi of DPO" and capitalize("") == ""
