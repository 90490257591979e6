"""Judgments made elsewhere: the DPO-Shift paper's files, FastChat's model_judgment, AlpacaEval's annotations.

The registry `FORMATS` recognises a file by its columns and turns it into verdicts on one model against a baseline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from dpotool.data.pairs import hash_prompt
from dpotool.errors import DpotoolError
from dpotool.judging.answers import Answer
from dpotool.judging.judgments import FIRST, JUDGED, SECOND, Judgment, judge_verdict
from dpotool.judging.lines import Row, read_lines
from dpotool.judging.verdicts import NO_VERDICT, RULES
from dpotool.runs.checked import check_value, load_json

Answers = Mapping[str, Answer]
"""Question id -> answer; empty if the answers are not available."""


@dataclass(frozen=True, slots=True)
class Imported:
    """Verdicts on one model against one baseline, or grades of one model."""

    model: str | None
    """Name in the file; None where the file does not say."""
    baseline: str | None
    judge: str
    judgments: list[Judgment]


class _Games(msgspec.Struct):
    question_id: str | int
    model_1: str
    model_2: str
    g1_winner: str
    g2_winner: str
    turn: int = 1
    judge: str | list[str] = "?"


class _Annotation(msgspec.Struct):
    instruction: str | list[dict[str, Any]]
    output_1: str
    output_2: str
    preference: float | None
    index: str | int | None = None
    dataset: str | None = None
    generator_1: str = "baseline"
    generator_2: str = "model"
    annotator: str = "annotator"


class _PaperReply(msgspec.Struct):
    question_id: str | int
    response: str


class _Grade(msgspec.Struct):
    question_id: str | int
    model: str
    score: float
    turn: int
    judge: str | list[str] = "?"


@dataclass(frozen=True, slots=True)
class JudgmentFormat:
    """A kind of file."""

    name: str
    row: type[msgspec.Struct]
    """What a row has to be."""
    read: Callable[[Sequence[Row], Answers, Answers], list[Imported]]

    @property
    def columns(self) -> frozenset[str]:
        """It is recognised by having these: what a row cannot be without."""
        return frozenset(about.name for about in msgspec.structs.fields(self.row) if about.required)


def import_judgments(path: str, ours: Answers, theirs: Answers) -> tuple[JudgmentFormat, list[Imported]]:
    """Reads a file of judgments of any known format.

    Args:
        ours, theirs: the answers that were judged, for their lengths; may be empty.

    Raises:
        DpotoolError: no known format, or a question was judged twice.
    """
    rows = _read_rows(path)
    format_ = next((known for known in FORMATS if known.columns <= rows[0].keys()), None) if rows else None
    if format_ is None:
        raise DpotoolError(
            "no known format of judgments",
            where=path,
            expected="; ".join(f"{known.name} ({', '.join(sorted(known.columns))})" for known in FORMATS),
            got=f"the columns {', '.join(rows[0])}" if rows else "no row",
        )
    if any(not format_.columns <= row.keys() for row in rows):
        raise DpotoolError(f"not every row is one of {format_.name}", where=path)
    _check_rows(rows, format_.row, path)
    found = format_.read(rows, ours, theirs)
    for imported in found:
        _refuse_repeats(imported, path)
    return format_, found


def _check_rows(rows: Sequence[Row], schema: type[msgspec.Struct], path: str) -> None:
    for number, row in enumerate(rows, start=1):
        check_value(row, schema, where=f"{path}: row {number}", remedy="Check the file")


def _read_rows(path: str) -> list[Row]:
    """Rows of a file of JSON lines, or of one JSON list as AlpacaEval writes it."""
    if Path(path).suffix == ".json" and Path(path).is_file():
        try:
            rows = load_json(Path(path))
        except ValueError as error:
            raise DpotoolError(f"is no JSON ({error})", where=path) from error
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            return rows
    return read_lines(path)


def _refuse_repeats(imported: Imported, path: str) -> None:
    counts = Counter((each.question_id, each.sample, each.order) for each in imported.judgments)
    twice = next((key for key, n in counts.items() if n > 1), None)
    if twice is not None:
        raise DpotoolError(f"question {twice[0]} was judged twice in one order", where=path)


def _read_paper(rows: Sequence[Row], ours: Answers, theirs: Answers) -> list[Imported]:
    """The paper's files: the reply as it came, the model's answer always A, the baseline's always B."""
    judgments = []
    for row in rows:
        id_ = str(row["question_id"])
        verdict = RULES["first-word"](str(row["response"]))
        said = judge_verdict(verdict, FIRST)
        found = Judgment.between(
            ours.get(id_), theirs.get(id_), FIRST, verdict.problem or JUDGED, said,
            question_id=id_, is_doubtful=verdict.is_doubtful,
        )  # fmt: skip
        judgments.append(found)
    return [Imported(None, None, "published replies", judgments)]


def _read_fastchat(rows: Sequence[Row], ours: Answers, theirs: Answers) -> list[Imported]:
    """FastChat's pairwise judgments: two games a question and turn, the second with the places changed."""
    groups: dict[tuple[str, str, str], list[Judgment]] = {}
    for row in rows:
        key = (row["model_1"], row["model_2"], _name_judge(row))
        id_, turn = str(row["question_id"]), int(row.get("turn", 1))
        pair, more = (ours.get(id_), theirs.get(id_)), dict[str, Any](question_id=id_, sample=turn - 1)
        for order, game in ((FIRST, "g1"), (SECOND, "g2")):
            said = {"model_1": "win", "model_2": "loss", "tie": "tie"}.get(str(row[f"{game}_winner"]).lower())
            said = said or {row["model_1"]: "win", row["model_2"]: "loss"}.get(row[f"{game}_winner"])
            status = JUDGED if said else NO_VERDICT
            judgments = groups.setdefault(key, [])
            judgments.append(Judgment.between(*pair, order, status, said, **more))
    return [Imported(model, baseline, judge, found) for (model, baseline, judge), found in groups.items()]


def _read_alpaca_eval(rows: Sequence[Row], _ours: Answers, _theirs: Answers) -> list[Imported]:
    """AlpacaEval's annotations: the model is output_2; a preference above 1.5 is for it, of 1.5 a tie.

    Weighted annotators give preferences between 1 and 2; the verdict is the nearer end, and the weight is stored as a
    score.
    """
    groups: dict[tuple[str, str, str], list[Judgment]] = {}
    for number, row in enumerate(rows):
        preference = row["preference"]
        known = isinstance(preference, int | float) and 1 <= preference <= 2
        weight = float(preference) - 1 if known else None
        said = None if weight is None else "tie" if weight == 0.5 else "win" if weight > 0.5 else "loss"
        judgment = Judgment(
            str(row.get("index", number)),
            0,
            "apart",  # its annotators draw the order at random and do not write it down
            JUDGED if said else NO_VERDICT,
            said,
            model_score=weight,
            baseline_score=None if weight is None else 1 - weight,
            model_length=len(row["output_2"]),
            baseline_length=len(row["output_1"]),
            category=row.get("dataset"),
            prompt_id=hash_prompt(row["instruction"]),
        )
        names = (row.get("generator_2", "model"), row.get("generator_1", "baseline"), row.get("annotator", "annotator"))
        groups.setdefault(names, []).append(judgment)
    return [Imported(model, baseline, judge, found) for (model, baseline, judge), found in groups.items()]


FORMATS = (
    JudgmentFormat(
        "FastChat's pairwise judgments",
        _Games,
        _read_fastchat,
    ),
    JudgmentFormat(
        "AlpacaEval's annotations",
        _Annotation,
        _read_alpaca_eval,
    ),
    JudgmentFormat(
        "the DPO-Shift paper's replies",
        _PaperReply,
        _read_paper,
    ),
)
"""Formats by their columns, the most particular first."""


def import_ratings(path: str, categories: Mapping[str, str | None]) -> tuple[str, dict[str, pd.DataFrame]]:
    """Reads FastChat's single grading (model_judgment/*_single.jsonl); a score of -1 means that there is no grade.

    Args:
        categories: question id -> category, where it is known.

    Returns:
        The judge, and model -> the table of RATING_SCHEMA.

    Raises:
        DpotoolError: it is none, by several judges, or an answer was graded twice.
    """
    rows = read_lines(path)
    needed = {about.name for about in msgspec.structs.fields(_Grade) if about.required}
    if not rows or any(not needed <= row.keys() for row in rows):
        raise DpotoolError("is no single grading of FastChat", where=path, expected=", ".join(sorted(needed)))
    _check_rows(rows, _Grade, path)
    judges = dict.fromkeys(_name_judge(row) for row in rows)
    if len(judges) > 1:
        raise DpotoolError("holds the grades of several judges", where=path, got=", ".join(judges))
    table = pd.DataFrame([{"model": str(row["model"]), **_read_rating(row, categories)} for row in rows])
    twice = table[table.duplicated(["model", "question_id", "turn"])]
    if len(twice):
        first = twice.iloc[0]
        raise DpotoolError(
            f"question {first['question_id']}, turn {first['turn']} of {first['model']} was graded twice", where=path
        )
    groups = table.groupby("model", sort=False)
    return next(iter(judges)), {str(model): rows.drop(columns="model") for model, rows in groups}


def _name_judge(row: Row) -> str:
    judge = row.get("judge", "?")
    return str(judge[0] if isinstance(judge, list) and judge else judge)


def _read_rating(row: Row, categories: Mapping[str, str | None]) -> dict[str, Any]:
    score, id_ = row["score"], str(row["question_id"])
    is_grade = isinstance(score, int | float) and 1 <= score <= 10
    return {
        "question_id": id_,
        "turn": int(row["turn"]),
        "status": JUDGED if is_grade else "no rating in the reply",
        "rating": float(score) if is_grade else None,
        "category": categories.get(id_),
    }
