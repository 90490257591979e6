"""Scores a sample of pairs a second time in other batches, which measures the rounding error of a value.

The sample follows from the pairs' content, and its second values are stored beside the first ones, so that
scoring the same pairs again measures nothing anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpotool.cache.entries import SECOND
from dpotool.cache.parts import Values
from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.scorer import Scorer
from dpotool.likelihood.store import hash_pair
from dpotool.progress import SILENT, Progress

MOST_PAIRS = 32
FEWEST_PAIRS = 8
ONE_IN = 8
"""The sample is at most this share of the pairs, where that leaves enough of them: it must stay cheap."""
_NO_LIMIT = 10**12


def choose_sample(pairs: Sequence[TokenizedPair]) -> list[int]:
    """Returns the places of the pairs to score twice: an eighth of them, 8 to 32, always the same ones."""
    n_pairs = min(MOST_PAIRS, max(FEWEST_PAIRS, len(pairs) // ONE_IN))
    return sorted(sorted(range(len(pairs)), key=lambda place: hash_pair(pairs[place]))[:n_pairs])


def find_missing_seconds(scorer: Scorer, pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
    """Returns the pairs of the sample whose second values the store does not have."""
    return scorer.find_missing([pairs[place] for place in choose_sample(pairs)], SECOND)


def score_in_twos(scorer: Scorer, pairs: Sequence[TokenizedPair], progress: Progress = SILENT) -> np.ndarray:
    """Computes log pi (nats) of each pair's chosen and rejected completion, two or three pairs of any length a batch.

    Where many pairs were scored, none of them had the same company: there it was a batch of like lengths, or none.
    None is alone here (`_make_twos`).

    Returns:
        Array (pairs, 2), chosen then rejected; from the store where it has them.
    """
    keys, known, _ = scorer.look_up(pairs, SECOND)
    missing = [place for place, key in enumerate(keys) if key not in known]
    with scorer.keeping() as keeper, progress.track("measuring noise", len(missing)) as advance:
        for two in _make_twos(missing, pairs, scorer.rows):
            logps = scorer.compute([pairs[place] for place in two], batch_tokens=_NO_LIMIT)
            new: Values = dict(
                zip((keys[place] for place in two), zip(logps.chosen, logps.rejected, strict=True), strict=True)
            )
            keeper.take(new)
            known |= new
            advance(len(new))
    return np.array([known[key] for key in keys], dtype=np.float64).reshape(-1, 2)


def _make_twos(places: Sequence[int], pairs: Sequence[TokenizedPair], rows: RowLayout) -> list[list[int]]:
    """Groups pairs of one layout by twos, the last three of an odd number together, a single pair beside itself.

    Pairs of different layouts never share a batch, so a pair that was alone the first time would be alone again.
    """
    twos: list[list[int]] = []
    for shared in (True, False):
        members = [place for place in places if rows.shares(pairs[place]) == shared]
        members *= 2 if len(members) == 1 else 1
        twos += [part.tolist() for part in np.array_split(members, max(1, len(members) // 2)) if len(part)]
    return twos


def summarize_noise(
    first: tuple[np.ndarray, np.ndarray | None], second: tuple[np.ndarray, np.ndarray | None], beta: float | None
) -> dict[str, Any]:
    """Returns the noise floor of a scoring from two scorings of a sample of its pairs.

    `{"largest", "typical"}` (the median) of absolute differences: of `logps` and `ref_logps` over both completions, in
    nats, and of `reward_margins`; None for what needs a reference without one.

    Args:
        first, second: policy values, and reference values or None: (pairs, 2) arrays, chosen then rejected.
    """
    policy = second[0] - first[0]
    noise: dict[str, Any] = {"n": len(policy), "logps": _describe(policy), "ref_logps": None, "reward_margins": None}
    if first[1] is not None and second[1] is not None:
        reference = second[1] - first[1]
        noise["ref_logps"] = _describe(reference)
        if beta is not None:
            changes = beta * (policy - reference)
            noise["reward_margins"] = _describe(changes[:, 0] - changes[:, 1])
    return noise


def _describe(differences: np.ndarray) -> dict[str, float] | None:
    sizes = np.abs(differences[np.isfinite(differences)])
    return {"largest": float(sizes.max()), "typical": float(np.median(sizes))} if sizes.size else None
