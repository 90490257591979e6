"""Checks that a loss can use the scores of the data, before anything is trained on them. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dpotool.errors import DpotoolError
from dpotool.wording import count

if TYPE_CHECKING:
    from dpotool.data.pairs import TokenizedPair
    from dpotool.losses.options import LossOptions

LEAST_SHARE = 0.1
"""Of score_range, that some pair's scores must differ by; less means that the scale is another one."""


def validate_scores(pairs: Sequence[TokenizedPair], options: LossOptions) -> None:
    """Checks that every pair's offset exists: both scores finite, chosen above rejected, and positive for "ratio".

    Raises:
        DpotoolError: names the first pair by its row in the source split, and how many more there are.
    """
    remedy = "odpo needs score_chosen > score_rejected in every pair: remove these pairs, or use --loss dpo"

    def find_fault(chosen: float, rejected: float) -> str | None:
        if chosen <= rejected:
            return f"score_chosen {chosen:g} does not exceed score_rejected {rejected:g}"
        if options["score_offset"] == "ratio" and rejected <= 0:
            return f"the 'ratio' offset needs positive scores, and score_rejected is {rejected:g}"
        return None

    _refuse_faulty(pairs, find_fault, remedy)


def validate_score_gaps(pairs: Sequence[TokenizedPair], options: LossOptions) -> None:
    """Checks that every pair's gap of scores lies in [0, score_range], and that the scale is not far wider than gaps.

    Raises:
        DpotoolError: the message names the first such pair by its row in the source split and counts the others; or
            no gap
            reaches a tenth of the range.
    """
    score_range = float(options["score_range"])

    def find_fault(chosen: float, rejected: float) -> str | None:
        if 0 <= chosen - rejected <= score_range:
            return None
        return f"scores {chosen:g} and {rejected:g} differ by {chosen - rejected:g}, outside 0 to {score_range:g}"

    _refuse_faulty(
        pairs, find_fault, "mappo needs 0 <= score_chosen - score_rejected <= score_range: see --score-range"
    )
    widest = max(
        (float(pair.score_chosen or 0) - float(pair.score_rejected or 0) for pair in pairs), default=score_range
    )
    if widest < LEAST_SHARE * score_range:
        raise DpotoolError(
            f"no two scores of a pair differ by more than {widest:g}, so the scale is not {score_range:g} wide",
            where="--score-range",
            remedy="Give the width of the scores' scale, such as --score-range 1 for rewards of 0 to 1",
        )


def _refuse_faulty(
    pairs: Sequence[TokenizedPair], find_fault: Callable[[float, float], str | None], remedy: str
) -> None:
    reasons = {pair.pair_id: reason for pair in pairs if (reason := _find_fault(pair, find_fault))}
    if not reasons:
        return
    pair_id, reason = next(iter(reasons.items()))
    more = f" ({count(len(reasons) - 1, 'more pair')} cannot be used either)" if len(reasons) > 1 else ""
    raise DpotoolError(f"{reason}{more}", where=f"row {pair_id}", remedy=remedy)


def _find_fault(pair: TokenizedPair, find_fault: Callable[[float, float], str | None]) -> str | None:
    chosen, rejected = pair.score_chosen, pair.score_rejected
    if chosen is None or rejected is None:
        return "the pair has no score_chosen or no score_rejected"
    if not (math.isfinite(chosen) and math.isfinite(rejected)):
        return f"scores {chosen:g} and {rejected:g} are not both finite"
    return find_fault(chosen, rejected)
