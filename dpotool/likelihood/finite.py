"""Pairs whose log-probabilities are not finite: never `ok`, never in a mean, never trained on.

A weight that is not a number makes every pair so, or only those with a certain token; a model in float16 can overflow
on long pairs. What a model gives for one pair is its own: a row that is not finite is computed again by itself
(`pair_logps`), since beside others it would spoil theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from dpotool.data.pairs import PairSet, TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.models.weights import list_non_finite
from dpotool.wording import count

_SHOWN = 5


def leave_out_non_finite(
    pair_set: PairSet, scored: Mapping[str, tuple[nn.Module, ScoredPairs]]
) -> tuple[PairSet, dict[str, ScoredPairs]]:
    """Returns the pairs that are finite under every model, with their values; the others are excluded by reason.

    Args:
        scored: name used in messages ('the model', 'the reference') -> the model and its values.

    Raises:
        DpotoolError: not one pair is left; it names weights that are not finite.
    """
    reasons: dict[int, str] = {}
    for name, (_, logps) in scored.items():
        for place in find_non_finite(logps):
            reasons.setdefault(pair_set.pairs[place].pair_id, f"its log-probability under {name} is not finite")
    values = {name: logps for name, (_, logps) in scored.items()}
    if not reasons:
        return pair_set, values
    if len(reasons) == len(pair_set.pairs):
        for name, (model, logps) in scored.items():
            refuse_non_finite(model, pair_set.pairs, logps, name)
    places = [place for place, pair in enumerate(pair_set.pairs) if pair.pair_id not in reasons]
    return pair_set.without(reasons), {name: logps.take(places) for name, logps in values.items()}


def find_non_finite(logps: ScoredPairs) -> list[int]:
    """Returns the places of the pairs of which a completion's log-probability is not finite."""
    return [int(place) for place in np.flatnonzero(~np.isfinite(logps.stack()).all(axis=1))]


def refuse_non_finite(model: nn.Module, pairs: Sequence[TokenizedPair], logps: ScoredPairs, name: str) -> None:
    """Raises a `DpotoolError` if a pair's log-probability is not finite, and says which and for which weights."""
    places = find_non_finite(logps)
    if not places:
        return
    weights = list_non_finite(model)
    shown = ", ".join(str(pairs[place].pair_id) for place in places[:_SHOWN])
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    raise DpotoolError(
        f"log-probabilities under {name} are not finite for {len(places)} of {count(len(pairs), 'pair')} "
        f"({shown}{more})",
        expected="finite weights" if weights else None,
        got=f"numbers that are not finite in {', '.join(weights[:_SHOWN])}" if weights else None,
        remedy="Name another checkpoint, or leave these pairs out" if weights else "Use --dtype float32 or bfloat16",
    )
