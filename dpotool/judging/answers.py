"""Answers on disk: a line per question and sample, with the prompt, the reference and the settings it was made with.

answers/<data>.jsonl of `dpotool generate`, and FastChat's files, which know neither prompt nor settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from dpotool.compare.runs_table import describe_run
from dpotool.errors import DpotoolError
from dpotool.judging.lines import Row, read_lines
from dpotool.judging.questions import Question, read_turns
from dpotool.runs.checked import check_value
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import Count

ENDED, CUT_OFF = "stop", "length"
"""Why an answer ends: with an end token, or at the limit of tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one model: a text for each turn."""

    question_id: str
    turns: tuple[str, ...]
    sample: int = 0
    token_counts: tuple[int | None, ...] = ()
    """Tokens of each turn, the closing one included; None where nobody counted."""
    finish: tuple[str | None, ...] = ()
    """Why each turn ended: 'stop', 'length', or what a server said."""
    token_ids: tuple[tuple[int, ...], ...] = ()
    """Tokens as they were generated, for each turn; empty for answers from elsewhere."""
    model: str = ""
    key: str = ""
    """Hash of what the answer depends on: weights or server, prompt, settings, sample."""
    question: Question | None = None
    """The prompt as the model got it; None for files that do not say."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The last turn's answer."""
        return self.turns[-1]

    def to_row(self) -> Row:
        """Returns the line that is written."""
        asked = self.question
        known: Row = (
            {}
            if asked is None
            else {
                "category": asked.category,
                "prompt": list(asked.turns),
                "reference": list(asked.references),
                "is_prompt": asked.is_prompt,
            }
        )
        return {
            "question_id": self.question_id,
            "sample": self.sample,
            **known,
            "answer": list(self.turns),
            "tokens": list(self.token_counts),
            "finish": list(self.finish),
            "token_ids": [list(ids) for ids in self.token_ids],
            "model": self.model,
            "settings": dict(self.settings),
            "key": self.key,
        }


class _Row(msgspec.Struct):
    """A line of `Answer.to_row`, as it has to be when it is read back."""

    question_id: str | int
    answer: Annotated[list[str], msgspec.Meta(min_length=1)]
    sample: Count = 0
    category: str | None = None
    prompt: Annotated[list[str | list[dict[str, Any]]], msgspec.Meta(min_length=1)] | None = None
    reference: list[str] | None = None
    is_prompt: bool = False
    tokens: list[Count | None] | None = None
    finish: list[str | None] | None = None
    token_ids: list[list[Count]] | None = None
    model: str = ""
    settings: dict[str, Any] | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """All answers of one model to one set of questions."""

    label: str
    path: Path
    answers: list[Answer]
    folder: RunFolder | None = None
    """The run folder they belong to; None for a file from elsewhere."""

    @property
    def name(self) -> str:
        """What the questions are called: the file's name."""
        return self.path.name.split(".jsonl")[0]


def read_answers(path: str | Path) -> list[Answer]:
    """Reads answers of `dpotool generate` or FastChat.

    Raises:
        DpotoolError: the file is neither, or has two answers to one question with one sample number.
    """
    answers = [read_row(row, path) for row in read_lines(path)]
    seen: set[tuple[str, int]] = set()
    for answer in answers:
        if (answer.question_id, answer.sample) in seen:
            raise DpotoolError(f"question {answer.question_id} is answered twice", where=str(path))
        seen.add((answer.question_id, answer.sample))
    if not answers:
        raise DpotoolError("holds no answer", where=str(path))
    return answers


def read_row(row: Row, path: str | Path) -> Answer:
    """Returns the answer in a line of either kind of file."""
    if "answer" not in row:
        turns = tuple(read_turns(row, path))
        return Answer(str(row["question_id"]), turns, model=str(row.get("model_id", "")))
    where, remedy = f"{path}: question {str(row.get('question_id'))[:40]}", "Generate the answers again"
    kept = check_value(row, _Row, where=where, remedy=remedy)
    id_, question = str(kept.question_id), None
    if kept.prompt is not None:
        references = tuple(kept.reference or ())
        question = Question(id_, tuple(kept.prompt), references, kept.category, kept.is_prompt)
    return Answer(
        question_id=id_,
        turns=tuple(kept.answer),
        sample=kept.sample,
        token_counts=tuple(kept.tokens or ()),
        finish=tuple(kept.finish or ()),
        token_ids=tuple(tuple(ids) for ids in kept.token_ids or ()),
        model=kept.model,
        key=kept.key,
        question=question,
        settings=kept.settings or {},
    )


def open_answers(name: str, data: str | None = None) -> AnswerSet:
    """Returns the answers in a run folder (the newest, or to the questions named), or those of a file.

    Raises:
        DpotoolError: there are none.
    """
    path = Path(name)
    if path.is_file():
        answers = read_answers(path)
        holder = RunFolder.of_table(path)
        folder = holder if path.parent.name == "answers" and holder.manifest_path.is_file() else None
        return AnswerSet(label_folder(folder) if folder else path.name.split(".jsonl")[0], path, answers, folder)
    folder = RunFolder(path)
    files = [file for file in folder.list_tables("answer") if not file.stem.endswith(".replies")]
    found = [file for file in files if data is None or file.stem == data]
    if not found:
        asked = f" to {data}" if data else ""
        raise DpotoolError(
            f"holds no answers{asked}",
            where=name,
            remedy=f"Run `dpotool generate {name}` first, or name a file of them",
        )
    return AnswerSet(label_folder(folder), found[0], read_answers(found[0]), folder)


def label_folder(folder: RunFolder) -> str:
    """Returns how a run is called in tables: by its loss and lambda, or by its folder's name."""
    if not folder.manifest_path.is_file():
        return folder.name
    manifest = folder.read_manifest()
    is_trained = manifest["kind"] == "train" or bool(manifest["config"].get("loss"))
    return describe_run(manifest["config"]) if is_trained else folder.name


def match_answers(ours: Sequence[Answer], theirs: Sequence[Answer]) -> tuple[list[tuple[Answer, Answer]], int]:
    """Returns the pairs of answers to the same question and sample, and how many of either have no counterpart."""
    others = {(answer.question_id, answer.sample): answer for answer in theirs}
    pairs = [
        (answer, others[answer.question_id, answer.sample])
        for answer in ours
        if (answer.question_id, answer.sample) in others
    ]
    return pairs, len(ours) + len(theirs) - 2 * len(pairs)
