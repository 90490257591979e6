"""Computes some stored values again and compares. The store holds no texts: they are read from the data once more."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from dpotool.cache.checking import is_disagreement, tolerance_of
from dpotool.errors import DpotoolError
from dpotool.likelihood.subject import open_subject
from dpotool.models.subject import describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.settings.shared import SubjectSettings
from dpotool.wording import count


@dataclass(frozen=True, slots=True)
class Recheck:
    """Stored values beside the same values computed now."""

    n_stored: int
    """Pairs of the data that the store has."""
    n_compared: int
    n_disagreeing: int
    """Pairs whose values differ by more than rounding explains."""
    largest_difference: float
    """Over both completions of all compared pairs, nats."""
    typical_difference: float
    """The median of them."""


def recheck_store(model: str, settings: SubjectSettings, n_pairs: int, *, progress: Progress = SILENT) -> Recheck:
    """Computes `n_pairs` random pairs (by `settings.seed`) of the data again that the store has for this model.

    Raises:
        DpotoolError: model or data cannot be used, or the store has none of these pairs for this model.
    """
    subject = replace(describe_subject(model, settings), reference=None)
    opened = open_subject(subject, progress)
    scorer = opened.policy_scorer
    keys, known, _ = scorer.look_up(opened.pair_set.pairs)
    stored = [place for place, key in enumerate(keys) if key in known]
    if not stored:
        raise DpotoolError(
            f"none of the {count(len(keys), 'pair')} is in the store for this model as "
            f"{scorer.types.removesuffix('-None')}",
            where=model,
            remedy="Name the pairs as they were scored: --data, --split, --max-length, --dtype",
        )
    places = sorted(random.Random(settings.seed).sample(stored, min(n_pairs, len(stored))))
    with progress.track("computing again", len(places)) as advance:
        again = scorer.compute([opened.pair_set.pairs[place] for place in places], on_progress=advance)
    values = np.array([known[keys[place]] for place in places])
    return _compare(len(stored), values, again.stack(), tolerance_of(scorer.types))


def _compare(n_stored: int, stored: np.ndarray, now: np.ndarray, tolerance: float) -> Recheck:
    """Compares two (pairs, 2) arrays."""
    differences = np.abs(stored - now)
    disagreeing = [
        any(is_disagreement(float(one), float(other), tolerance) for one, other in zip(*both, strict=True))
        for both in zip(stored, now, strict=True)
    ]
    return Recheck(n_stored, len(stored), sum(disagreeing), float(differences.max()), float(np.median(differences)))
