"""Texts that are nearly the same: candidates by MinHash (datasketch), each then measured by edit distance (rapidfuzz).

Two texts are nearly the same where at most a tenth of the longer one has to be changed to make the other. Candidates
share about half of their pieces of five letters; upper and lower case and white space do not count.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

SIMILARITY = 0.9
"""1 - edit distance / length of the longer text, from which on two texts are nearly the same."""
_PIECE = 5
_N_PERMUTATIONS = 64
_JACCARD = 0.5
_MOST_CANDIDATES = 500


def squash(text: str) -> str:
    """Returns a text without its case and with single blanks: what equal means for prompts."""
    return " ".join(text.casefold().split())


def is_similar(text: str, other: str) -> bool:
    """Tells whether two texts are nearly the same, or the same."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(squash(text), squash(other), score_cutoff=SIMILARITY) >= SIMILARITY


def find_similar(
    texts: Sequence[str],
    among: Sequence[str] | None = None,
    *,
    matches: Callable[[int, int], bool] | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[int, int]:
    """Returns for texts that are nearly the same as another one, by their places, the place of the first such.

    Args:
        among: where to look; without it, among the earlier texts of the same list.
        matches: decides on a candidate (place of the text, place of the other) in place of `is_similar`.
        advance: called for each text that was compared.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=_JACCARD, num_perm=_N_PERMUTATIONS)
    first = MinHash(num_perm=_N_PERMUTATIONS, hashfunc=zlib.crc32)
    found: dict[int, int] = {}

    def sketch(text: str) -> MinHash:
        text = squash(text)
        pieces = {text[start : start + _PIECE] for start in range(max(1, len(text) - _PIECE + 1))}
        minhash = first.copy()
        minhash.update_batch([piece.encode() for piece in sorted(pieces)])
        return minhash

    for place, text in enumerate(among or ()):
        index.insert(place, sketch(text))
    for place, text in enumerate(texts):
        minhash = sketch(text)
        for other in sorted(index.query(minhash))[:_MOST_CANDIDATES]:
            other_text = texts[other] if among is None else among[other]
            if matches(place, other) if matches is not None else is_similar(text, other_text):
                found[place] = other
                break
        if among is None:
            index.insert(place, minhash)
        advance(1)
    return found
