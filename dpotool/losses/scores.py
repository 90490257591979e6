"""Checks that ODPO can use the scores of the data, before anything is trained on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.losses.options import LossOptions


def validate_scores(pairs: Sequence[TokenizedPair], options: LossOptions) -> None:
    """Checks that every pair's offset exists: both scores finite, chosen above rejected, and positive for "ratio".

    Raises:
        DpotoolError: names the first pair by its row in the source split, and how many more there are.
    """
    reasons = {pair.pair_id: reason for pair in pairs if (reason := _find_fault(pair, str(options["score_offset"])))}
    if not reasons:
        return
    pair_id, reason = next(iter(reasons.items()))
    more = f" ({len(reasons) - 1} more pairs cannot be used either)" if len(reasons) > 1 else ""
    raise DpotoolError(
        f"{reason}{more}",
        where=f"row {pair_id}",
        remedy="odpo needs score_chosen > score_rejected in every pair: remove these pairs, or use --loss dpo",
    )


def _find_fault(pair: TokenizedPair, score_offset: str) -> str | None:
    chosen, rejected = pair.score_chosen, pair.score_rejected
    if chosen is None or rejected is None:
        return "the pair has no score_chosen or no score_rejected"
    if not (math.isfinite(chosen) and math.isfinite(rejected)):
        return f"scores {chosen:g} and {rejected:g} are not both finite"
    if chosen <= rejected:
        return f"score_chosen {chosen:g} does not exceed score_rejected {rejected:g}"
    if score_offset == "ratio" and rejected <= 0:
        return f"the 'ratio' offset needs positive scores, and score_rejected is {rejected:g}"
    return None
