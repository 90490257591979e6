"""Which part of an answer each of its tokens belongs to, by aligning chosen and rejected; and sums over the parts.

The two answers of a pair often agree for long stretches, and displacement on what they share is another matter than
displacement on what sets them apart. So their tokens are aligned by a longest common subsequence of token ids, and
every token is in exactly one span:

- `eos`: what closes the answer, the end token and the white space that a chat template puts behind it;
- `shared_prefix`: before the first difference;
- `shared`: after it, and matched with a token of the other answer;
- `divergent`: matched with none.

The prefix is matched first, which costs no match: some longest common subsequence always contains it. Among several
alignments of one length the one that rapidfuzz finds is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from rapidfuzz.distance import LCSseq, Levenshtein

from dpotool.compare.diagnosis import SPANS

NONE = -1


@dataclass(frozen=True, slots=True)
class AlignedAnswer:
    """One answer of a pair, token by token."""

    spans: list[str]
    """Of SPANS, one per token."""
    rivals: Int[np.ndarray, " tokens"]
    """The other answer's next token at the position where the two diverge, else -1.

    They have just diverged where the token before is matched (or there is none before in either), the other answer goes
    on, and it goes on with another token.
    """


def align_answers(
    chosen: Sequence[int], rejected: Sequence[int], n_ends: tuple[int, int]
) -> tuple[AlignedAnswer, AlignedAnswer]:
    """Aligns the token ids of the two answers of a pair; returns the chosen one, then the rejected one.

    Args:
        n_ends: how many tokens close either answer (`PairEncoder.count_end`).
    """
    bodies = [list(ids[: len(ids) - n]) for ids, n in zip((chosen, rejected), n_ends, strict=True)]
    prefix = _count_shared_prefix(*bodies)
    matches = [(place, place) for place in range(prefix)]
    blocks = LCSseq.opcodes(bodies[0][prefix:], bodies[1][prefix:])
    for block in blocks:
        if block.tag == "equal":
            start, other = prefix + block.src_start, prefix + block.dest_start
            matches += [(start + step, other + step) for step in range(block.src_end - block.src_start)]
    forward, backward = dict(matches), {other: place for place, other in matches}
    return (
        _describe(chosen, rejected, forward, prefix, len(bodies[0])),
        _describe(rejected, chosen, backward, prefix, len(bodies[1])),
    )


def compute_edit_similarity(chosen: Sequence[int], rejected: Sequence[int]) -> float:
    """Returns 1 - Levenshtein distance of the token ids / length of the longer answer: 1 for equal answers, else less.

    The measure of arXiv:2410.08847, section 4 (its "edit distance score"), EOS included on both sides.
    """
    return float(Levenshtein.normalized_similarity(list(chosen), list(rejected)))


def sum_spans(changes: Float[np.ndarray, " tokens"], spans: Sequence[str]) -> dict[str, float]:
    """Sums a value per token over each span, in float64; the sums add up to the sum over all tokens."""
    names = np.asarray(spans)
    return {span: float(np.sum(changes[names == span], dtype=np.float64)) for span in SPANS}


def _count_shared_prefix(chosen: Sequence[int], rejected: Sequence[int]) -> int:
    pairs = zip(chosen, rejected, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))


def _describe(
    ids: Sequence[int], others: Sequence[int], matches: dict[int, int], prefix: int, n_body: int
) -> AlignedAnswer:
    spans = [
        "shared_prefix" if place < prefix else "shared" if place in matches else "divergent" for place in range(n_body)
    ]
    spans += ["eos"] * (len(ids) - n_body)
    rivals = np.full(len(ids), NONE)
    for place, token in enumerate(ids):
        rival = 0 if place == 0 else matches.get(place - 1, NONE - 1) + 1
        if 0 <= rival < len(others) and others[rival] != token:
            rivals[place] = others[rival]
    return AlignedAnswer(spans, rivals)
