"""The built-in preference pairs: two answers to a request that share most of their words, scored by a noisy judge.

Three splits with no prompt in common: `train` and `test` are pairs of drafts of mixed quality, as a model's own samples
are; `sft` holds demonstrations, mostly good answers, for the stage before preference training. The judge scores quality
plus noise, so that no model can get every pair right.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from dpotool.data.demo_grammar import (
    Answer,
    LevelShares,
    Topic,
    draw_answer,
    draw_facts,
    load_topics,
    pick,
    rate_answer,
    redraw_answer,
    render_answer,
)
from dpotool.errors import DpotoolError

SPLITS = {"test": 400, "train": 2000, "sft": 2000}
"""Split -> rows, in the order they are drawn."""
SEED = 20250211

DRAFT_SHARES: LevelShares = ((0.45, 0.3, 0.25), (0.4, 0.3, 0.3))
"""How good the two answers of `train` and `test` are."""
DEMONSTRATION_SHARES: LevelShares = ((0.65, 0.25, 0.1), (0.15, 0.8, 0.05))
"""How good demonstrations are: better than drafts, and shorter."""
REDRAWN = 0.3
"""How likely a part of the second draft differs from the first's."""
NOISE = 0.6
"""Standard deviation of the judge, in points of its scale from 1 to 10."""


def generate_demo_rows(split: str) -> list[dict[str, Any]]:
    """Returns the rows of a split: prompt, chosen, rejected, score_chosen, score_rejected; the same on every machine.

    Raises:
        DpotoolError: there is no such split.
    """
    if split not in SPLITS:
        raise DpotoolError("no such split", where="builtin:demo", expected=", ".join(SPLITS), got=repr(split))
    return [dict(row) for row in _generate()[split]]


@cache
def _generate() -> dict[str, list[dict[str, Any]]]:
    rng, topics = random.Random(SEED), load_topics()
    seen: set[str] = set()
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, n_rows in SPLITS.items():
        shares = DEMONSTRATION_SHARES if split == "sft" else DRAFT_SHARES
        rows: list[dict[str, Any]] = []
        while len(rows) < n_rows:
            row = _draw_row(rng, topics[len(rows) % len(topics)], shares)
            if row["prompt"] not in seen:
                seen.add(row["prompt"])
                rows.append(row)
        splits[split] = rows
    return splits


def _draw_row(rng: random.Random, topic: Topic, shares: LevelShares) -> dict[str, Any]:
    facts = draw_facts(rng, topic)
    request = pick(rng, topic.requests).format(**facts)
    first = draw_answer(rng, topic, shares)
    second = first
    while render_answer(topic, first, facts) == render_answer(topic, second, facts):
        second = redraw_answer(rng, topic, first, shares, REDRAWN)
    scores = (0.0, 0.0)
    while scores[0] == scores[1]:
        scores = (_score(rng, topic, first), _score(rng, topic, second))
    ranked = sorted(zip(scores, (first, second), strict=True), key=lambda scored: scored[0], reverse=True)
    (score_chosen, chosen), (score_rejected, rejected) = ranked
    return {
        "prompt": f"User: {request}\nAssistant:",
        "chosen": " " + render_answer(topic, chosen, facts),
        "rejected": " " + render_answer(topic, rejected, facts),
        "score_chosen": score_chosen,
        "score_rejected": score_rejected,
    }


def _score(rng: random.Random, topic: Topic, answer: Answer) -> float:
    """Returns the judge's score, 1 to 10 in halves."""
    noise = (sum(rng.random() for _ in range(4)) - 2) * NOISE * 3**0.5  # four uniforms: nearly normal
    return min(10.0, max(1.0, round(2 * (5.5 + 5 * rate_answer(topic, answer) + noise)) / 2))
