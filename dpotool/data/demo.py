"""The built-in preference pairs: two answers to a request that share most of their words, scored by a noisy judge.

The grammar behind them is a request about drawn facts, and answers made of good, fair and poor phrases. `{names}`
inside phrases are facts; a fact's `wrong_` twin is the same fact taken from elsewhere, so that only the request can
tell the two apart. Everything is drawn through `random.Random.random`, the one generator that Python promises to keep
the same from version to version.

Three splits with no prompt in common: `train` and `test` are pairs of drafts of mixed quality, as a model's samples
are; `sft` holds demonstrations, mostly good answers, for the stage before preference training. The judge scores quality
plus noise, so that no model can get every pair right.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import msgspec
import yaml

from dpotool.errors import DpotoolError

Choice = TypeVar("Choice")
LevelShares = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Frequencies of good, fair and poor phrases: in the parts every answer has, and in the extra sentences."""
Answer = Mapping[str, tuple[int, str]]
"""Slot -> (level: 0 good, 1 fair, 2 poor; phrase)."""


@dataclass(frozen=True)
class Slot:
    """One part of an answer: its phrases by level of quality, and how much a reader minds."""

    good: tuple[str, ...]
    fair: tuple[str, ...]
    poor: tuple[str, ...]
    weight: float = 1.0
    is_extra: bool = False
    """A sentence that answers may do without: `fair` leaves it out, as a plain answer does."""


@dataclass(frozen=True)
class Topic:
    """One kind of request and how it is answered."""

    requests: tuple[str, ...]
    answer: str
    slots: Mapping[str, Slot]
    subjects: tuple[Mapping[str, str], ...] = ({},)
    """Facts that belong together; their `wrong_` twins come from another subject."""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Facts drawn independently; the `wrong_` twin is another choice from the same list."""
    sum_of: tuple[str, str] | None = None
    """Two facts that are numbers, whose total is the fact `sum`."""


@cache
def load_topics() -> tuple[Topic, ...]:
    """Reads the kinds of request from `demo_topics.yaml`; a table of subjects there has a header and cells cut by |."""
    topics = yaml.safe_load(resources.files("dpotool.data").joinpath("demo_topics.yaml").read_text(encoding="utf-8"))
    for topic in topics:
        if "subjects" in topic:
            names, *rows = ([cell.strip() for cell in row.split("|")] for row in topic["subjects"].splitlines())
            topic["subjects"] = [dict(zip(names, row, strict=True)) for row in rows]
    return msgspec.convert(topics, tuple[Topic, ...])


def pick(rng: random.Random, options: Sequence[Choice]) -> Choice:
    """Draws one of the options, each as likely."""
    return options[int(rng.random() * len(options))]


def draw_facts(rng: random.Random, topic: Topic) -> dict[str, str]:
    """Draws what a request is about: every fact with its `wrong_` twin."""
    facts: dict[str, str] = {}
    columns = {name: tuple(s[name] for s in topic.subjects) for name in topic.subjects[0]}
    right = dict(pick(rng, topic.subjects)) | {name: pick(rng, options) for name, options in topic.choices.items()}
    for name, options in (columns | dict(topic.choices)).items():
        facts[name] = right[name]
        facts[f"wrong_{name}"] = pick(rng, [option for option in options if option != right[name]])
    if topic.sum_of:
        total = sum(int(facts[name]) for name in topic.sum_of)
        facts["sum"] = str(total)
        facts["wrong_sum"] = str(total + pick(rng, (-2, -1, 1, 2)))
    return facts


def draw_answer(rng: random.Random, topic: Topic, shares: LevelShares) -> dict[str, tuple[int, str]]:
    """Draws a phrase for every slot, at the levels' `shares`."""
    return {name: _draw_phrase(rng, slot, shares) for name, slot in topic.slots.items()}


def redraw_answer(
    rng: random.Random, topic: Topic, answer: Answer, shares: LevelShares, redrawn: float
) -> dict[str, tuple[int, str]]:
    """Draws each phrase of an answer again with probability `redrawn`; the others do not change."""
    return {
        name: _draw_phrase(rng, slot, shares) if rng.random() < redrawn else answer[name]
        for name, slot in topic.slots.items()
    }


def _draw_phrase(rng: random.Random, slot: Slot, level_shares: LevelShares) -> tuple[int, str]:
    shares = level_shares[slot.is_extra]
    drawn = rng.random()
    level = 0 if drawn < shares[0] else 1 if drawn < shares[0] + shares[1] else 2
    return level, pick(rng, (slot.good, slot.fair, slot.poor)[level])


def rate_answer(topic: Topic, answer: Answer) -> float:
    """Returns the quality of an answer: the weighted mean of its levels, 1 for all good, -1 for all poor."""
    total = sum(slot.weight for slot in topic.slots.values())
    return sum(slot.weight * (1 - answer[name][0]) for name, slot in topic.slots.items()) / total


def render_answer(topic: Topic, answer: Answer, facts: Mapping[str, str]) -> str:
    """Writes an answer out: facts filled in, single spaces, a capital at the start of every sentence."""
    phrases = {name: phrase.format(**facts) for name, (_, phrase) in answer.items()}
    text = " ".join(topic.answer.format(**(dict(facts) | phrases)).split())
    sentence_starts = [0] + [i + 2 for i, mark in enumerate(text[:-2]) if mark in ".!?"]
    for start in sentence_starts:
        text = text[:start] + text[start].upper() + text[start + 1 :]
    return text


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
