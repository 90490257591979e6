"""Reads a text of the built-in grammar back: which request it is, and how good an answer to it a text is.

The inverse of the grammar in `demo`: a request tells its topic and facts, an answer the level of each of its parts. So
the built-in pairs have an exact judge, for new answers too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from dpotool.data.demo import Slot, Topic, load_topics, rate_answer

_FIELD = re.compile(r"\{(\w+)\}")
_LEVELS = ("good", "fair", "poor")


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks for: its topic, and the possible values of each fact, just one for a fact that it names."""

    topic: Topic
    facts: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How good an answer is."""

    quality: float
    """-1 for all parts poor, 1 for all good (`demo.rate_answer`)."""
    is_whole: bool
    """The text is an answer of the grammar from its first word to its last; else parts not found count as poor."""


def read_request(prompt: str) -> Request | None:
    """Returns the request in a prompt of the built-in pairs, or None where it is none."""
    text = prompt.removeprefix("User: ").removesuffix("Assistant:").strip()
    for topic in load_topics():
        for request in topic.requests:
            found = re.fullmatch(_capture(request, topic), text)
            if found is not None:
                return Request(topic, _complete(topic, found.groupdict()))
    return None


def rate_text(request: Request, answer: str) -> Reading:
    """Returns the quality of a text as an answer to a request.

    A text that the grammar could not have written is searched for its parts; what is not found counts as poor, and so
    does every part of a text that holds nothing of an answer.
    """
    text = " ".join(answer.split())
    whole = re.compile(_answer_pattern(request), re.IGNORECASE).fullmatch(text)
    levels = {}
    for name, slot in request.topic.slots.items():
        level = _level_in(whole, name) if whole else _search(request, slot, text)
        levels[name] = (level, "")
    return Reading(rate_answer(request.topic, levels), whole is not None)


def _options(topic: Topic) -> dict[str, tuple[str, ...]]:
    """Every fact with all values it can have."""
    columns = {name: tuple(dict.fromkeys(s[name] for s in topic.subjects)) for name in topic.subjects[0]}
    return columns | {name: tuple(dict.fromkeys(values)) for name, values in topic.choices.items()}


def _capture(template: str, topic: Topic) -> str:
    """A request as a pattern with a group for each fact; a fact named twice has the same value."""
    options, seen, pattern, end = _options(topic), set(), "", 0
    for field in _FIELD.finditer(template):
        name = field.group(1)
        pattern += re.escape(template[end : field.start()])
        pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{_any_of(options[name])})"
        seen.add(name)
        end = field.end()
    return pattern + re.escape(template[end:])


def _complete(topic: Topic, known: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Adds what follows from the facts that were named: the rest of their subject, the sum, and all that is wrong."""
    options = _options(topic)
    subjects = [s for s in topic.subjects if all(s[name] == value for name, value in known.items() if name in s)]
    facts = {name: tuple(dict.fromkeys(s[name] for s in subjects)) for name in topic.subjects[0]}
    facts |= {name: (known[name],) if name in known else values for name, values in topic.choices.items()}
    wrong = {f"wrong_{name}": tuple(v for v in options[name] if v not in facts[name]) for name in options}
    if topic.sum_of:
        total = sum(int(facts[name][0]) for name in topic.sum_of)
        facts["sum"] = (str(total),)
        wrong["wrong_sum"] = tuple(str(total + step) for step in (-2, -1, 1, 2))
    return facts | wrong


def _answer_pattern(request: Request) -> str:
    """The topic's answer as a pattern, a group for each level of each slot."""
    pattern, end = "", 0
    template = request.topic.answer
    for field in _FIELD.finditer(template):
        name = field.group(1)
        pattern += _spaced(template[end : field.start()])
        slot = request.topic.slots.get(name)
        pattern += _any_of(request.facts[name]) if slot is None else _slot_pattern(request, name, slot)
        end = field.end()
    return rf"\s*{pattern}{_spaced(template[end:])}\s*"


def _slot_pattern(request: Request, name: str, slot: Slot) -> str:
    groups = []
    for level in _LEVELS:
        phrases = "|".join(_phrase_pattern(request, phrase) for phrase in getattr(slot, level))
        groups.append(f"(?P<{name}_{level}>{phrases})")
    return f"(?:{'|'.join(groups)})"


def _phrase_pattern(request: Request, phrase: str) -> str:
    pattern, end = "", 0
    for field in _FIELD.finditer(phrase):
        pattern += re.escape(phrase[end : field.start()]) + _any_of(request.facts[field.group(1)])
        end = field.end()
    return pattern + re.escape(phrase[end:])


def _level_in(found: re.Match[str], name: str) -> int:
    return next(number for number, level in enumerate(_LEVELS) if found.group(f"{name}_{level}") is not None)


def _search(request: Request, slot: Slot, text: str) -> int:
    """The level of the longest phrase of a slot that occurs in a text; 2, poor, for none."""
    longest, level = 0, 2
    for number, name in enumerate(_LEVELS):
        for phrase in getattr(slot, name):
            found = re.search(rf"\b{_phrase_pattern(request, phrase)}(?!\w)", text, re.IGNORECASE) if phrase else None
            if found is not None and len(found.group(0)) > longest:
                longest, level = len(found.group(0)), number
    return level


def _any_of(values: Sequence[str]) -> str:
    """A pattern for one of the values, which tries a longer value before one that is its beginning."""
    return "(?:" + "|".join(map(re.escape, sorted(values, key=len, reverse=True))) + ")" if values else r"(?!)"


def _spaced(literal: str) -> str:
    """Text between two parts: blanks may be missing where a part is empty."""
    return r"\s*".join(map(re.escape, literal.split(" ")))


@cache
def read_prompt(prompt: str) -> Request | None:
    """Returns `read_request` of a prompt, computed once for each."""
    return read_request(prompt)
