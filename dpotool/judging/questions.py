"""Questions that models answer: the prompts of a preference set, or a file in FastChat's layout with one or more turns.

FastChat: {"question_id": 81, "category": "writing", "turns": ["...", "..."]}, reference answers in a file of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpotool.data.pair_sets import load_rows
from dpotool.data.pairs import DataSource, PreferenceData, Text, hash_prompt
from dpotool.errors import DpotoolError
from dpotool.judging.lines import read_lines
from dpotool.settings.shared import DataSettings


@dataclass(frozen=True, slots=True)
class Question:
    """A question, with reference answers if there are any."""

    question_id: str
    turns: tuple[Text, ...]
    """The user's turns. Of a preference pair: its whole prompt, plain text or messages, as one turn."""
    references: tuple[str, ...] = ()
    """A reference answer for each turn, or none at all; of a preference pair the chosen completion."""
    category: str | None = None
    is_prompt: bool = False
    """The turn is a whole prompt of a preference set, which the model continues."""

    @property
    def prompt_id(self) -> str:
        """Hash of the first turn: equal for equal prompts."""
        return hash_prompt(self.turns[0])

    @property
    def texts(self) -> tuple[str, ...]:
        """The turns as a judge reads them; a conversation as 'user: ...' lines."""
        return tuple(turn if isinstance(turn, str) else show_messages(turn) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Questions with the name their answers are filed under."""

    name: str
    questions: list[Question]
    source: DataSource | None = None
    """Where the prompts of a preference set are from."""


def load_questions(settings: DataSettings, questions: str | None, references: str | None, seed: int) -> QuestionSet:
    """Reads a question file, or the prompts of the preference set that the settings name.

    Raises:
        DpotoolError: as the readers of either do; or references are given for a preference set, which has its own.
    """
    if questions is None:
        if references is not None:
            raise DpotoolError(
                "only question files have references apart", where="--references", remedy="Name --questions too"
            )
        return _from_preferences(settings, seed)
    found = read_questions(questions, references)[: settings.limit]
    return QuestionSet(Path(questions).name.split(".jsonl")[0], found)


def _from_preferences(settings: DataSettings, seed: int) -> QuestionSet:
    data = load_rows(settings, seed=seed, default_split="test")
    return QuestionSet(f"{data.source.name}-{data.source.split}", read_pairs(data), data.source)


def read_pairs(data: PreferenceData) -> list[Question]:
    """Returns a question per pair, its id the pair's row, its reference the chosen completion."""
    return [
        Question(str(pair.pair_id), (pair.prompt,), (show_completion(pair.chosen),), is_prompt=True)
        for pair in data.pairs
    ]


def show_completion(completion: Text) -> str:
    """Returns a completion as plain text: its last message's content where it is a list of messages."""
    return completion.strip() if isinstance(completion, str) else str(completion[-1].get("content", "")).strip()


def show_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns a conversation as text, a line for each message's role and content; a single user turn unchanged."""
    if len(messages) == 1 and messages[0].get("role") == "user":
        return str(messages[0].get("content", ""))
    return "\n\n".join(f"{message.get('role')}: {message.get('content', '')}" for message in messages)


def read_questions(path: str, references: str | None = None) -> list[Question]:
    """Reads a question file in FastChat's layout, with reference answers where a file of them is given.

    Then those of that file alone, as FastChat does: its question file notes answers to ten further questions, which its
    judge is not shown.

    Raises:
        DpotoolError: a row has no id or no turns, an id occurs twice, or a reference belongs to no question.
    """
    questions: dict[str, Question] = {}
    for number, row in enumerate(read_lines(path), start=1):
        turns, id_ = row.get("turns"), row.get("question_id")
        if id_ is None or not isinstance(turns, list) or not turns or not all(isinstance(turn, str) for turn in turns):
            raise DpotoolError(
                "is no question", where=f"{path}: row {number}", expected="question_id and turns, a list of texts"
            )
        if str(id_) in questions:
            raise DpotoolError(f"question {id_} occurs twice", where=f"{path}: row {number}")
        given, category = () if references else row.get("reference") or (), row.get("category")
        if not isinstance(given, list | tuple) or not (category is None or _is_text(category)):
            raise DpotoolError(
                "is no question", where=f"{path}: row {number}", expected="texts as reference and category"
            )
        questions[str(id_)] = Question(str(id_), tuple(turns), tuple(map(str, given)), category)
    if not questions:
        raise DpotoolError("holds no question", where=path)
    for id_, answers in read_references(references).items() if references else ():
        if id_ not in questions:
            raise DpotoolError(f"question {id_} is not in {path}", where=str(references))
        questions[id_] = replace(questions[id_], references=answers)
    return list(questions.values())


def read_references(path: str) -> dict[str, tuple[str, ...]]:
    """Reads reference answers, which FastChat stores as answers: question id -> one for each turn."""
    return {str(row["question_id"]): tuple(read_turns(row, path)) for row in read_lines(path)}


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def read_turns(row: Mapping[str, Any], path: str | Path) -> list[str]:
    """Returns the answers of a FastChat row, choices[0].turns.

    Raises:
        DpotoolError: it is none.
    """
    try:
        turns = row["choices"][0]["turns"]
    except (KeyError, IndexError, TypeError):
        turns = None
    if not turns or not isinstance(turns, list) or "question_id" not in row or not all(map(_is_text, turns)):
        raise DpotoolError(
            "a row is no answer", where=str(path), expected="FastChat's question_id and choices[0].turns"
        )
    return turns
