"""Judgments as rows of a table: one for each question and order, made from verdicts, scores or other tools' files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from dpotool.judging.answers import Answer
from dpotool.judging.verdicts import Verdict

JUDGED, IDENTICAL = "judged", "identical"
FIRST, SECOND, APART = "first", "second", "apart"
ORDERS = (FIRST, SECOND)
SCORE_TOLERANCE = 1e-9
"""Scores nearer than this are a tie: the same sum taken in another order."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """One row of JUDGMENT_SCHEMA; its columns by name."""

    question_id: str
    sample: int
    order: str
    status: str
    verdict: str | None = None
    is_doubtful: bool = False
    model_score: float | None = None
    baseline_score: float | None = None
    model_length: int | None = None
    baseline_length: int | None = None
    category: str | None = None
    prompt_id: str | None = None

    @classmethod
    def between(
        cls, ours: Answer | None, theirs: Answer | None, order: str, status: str, verdict: str | None, **more: Any
    ) -> Judgment:
        """Returns a row with what follows from the two answers: question, lengths in characters, prompt.

        Args:
            more: further columns; `question_id` and `sample` if the model's answer is not available.
        """
        question = (ours.question if ours else None) or (theirs.question if theirs else None)
        row = {
            "question_id": ours.question_id if ours else None,
            "sample": ours.sample if ours else 0,
            "model_length": len("".join(ours.turns)) if ours else None,
            "baseline_length": len("".join(theirs.turns)) if theirs else None,
            "category": question.category if question else None,
            "prompt_id": question.prompt_id if question else None,
        }
        return cls(order=order, status=status, verdict=verdict, **{**row, **more})


def judge_verdict(verdict: Verdict, order: str) -> str | None:
    """Returns 'win', 'tie' or 'loss' for the model, whose answer was A (order 'first') or B ('second')."""
    if verdict.choice is None:
        return None
    if verdict.choice == "Tie":
        return "tie"
    return "win" if (verdict.choice == "A") == (order == FIRST) else "loss"


def judge_scores(model: float, baseline: float) -> str:
    """Returns 'win', 'tie' or 'loss' for the model by two scores of which more is better."""
    difference = model - baseline
    return "tie" if abs(difference) <= SCORE_TOLERANCE else "win" if difference > 0 else "loss"


def build_judgment_frame(judgments: Iterable[Judgment]) -> pd.DataFrame:
    """Returns the table of JUDGMENT_SCHEMA."""
    rows = [asdict(judgment) for judgment in judgments]
    frame = pd.DataFrame(rows, columns=list(Judgment.__dataclass_fields__))
    for name in ("is_doubtful", "model_length", "baseline_length"):
        frame[name] = frame[name].astype("Int64")
    for name in ("model_score", "baseline_score"):
        frame[name] = frame[name].astype("float64")
    for name in ("verdict", "category", "prompt_id"):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame


def are_identical(ours: Answer, theirs: Answer) -> bool:
    """Whether two answers are the same text, white space at the ends aside."""
    return [turn.strip() for turn in ours.turns] == [turn.strip() for turn in theirs.turns]


def tie_identical(pairs: Sequence[tuple[Answer, Answer]]) -> list[Judgment]:
    """Returns the rows for answers that are the same: a tie, without asking."""
    return [Judgment.between(*pair, APART, IDENTICAL, "tie") for pair in pairs]
