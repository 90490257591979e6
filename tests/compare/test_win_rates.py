"""Judgment tables to win rates: orders merged, questions counted once, what has no verdict counted and in no class."""

from __future__ import annotations

import pandas as pd
import pytest

from dpotool.compare.win_rates import merge_judgments, note_adjusted, state_result, summarize_judgments
from dpotool.runs.atomic import to_json_plain


def table(*rows: tuple[str, str, str | None], status: str = "judged") -> pd.DataFrame:
    """Rows of (question, order, verdict)."""
    frame = pd.DataFrame(rows, columns=["question_id", "order", "verdict"])
    frame["status"] = [status if verdict else "no verdict in the reply" for _, _, verdict in rows]
    lengths = {"model_length": 10, "baseline_length": 10}
    return frame.assign(sample=0, category=None, prompt_id=frame["question_id"], is_doubtful=False, **lengths)


def test_orders_are_merged_by_hand():
    """Agreed win, orders that differ, one order without a verdict, agreed loss: win, tie, none, loss."""
    found = table(
        ("1", "first", "win"), ("1", "second", "win"),
        ("2", "first", "win"), ("2", "second", "loss"),
        ("3", "first", "win"), ("3", "second", None),
        ("4", "first", "loss"), ("4", "second", "loss"),
    )  # fmt: skip
    merged = merge_judgments(found)
    assert merged["outcome"].fillna(9).tolist() == [1, 0, 9, -1]
    assert merged["status"].tolist() == ["judged", "orders differ", "no verdict in the reply", "judged"]
    summary = summarize_judgments(found)
    assert (summary["n"], summary["n_questions"], summary["without_outcome"]) == (3, 4, 1)
    assert summary["verdicts"] == {"asked": 8, "judged": 7, "no verdict in the reply": 1}
    assert summary["order_effect"]["n"] == 3 and summary["order_effect"]["agreement"]["mean"] == pytest.approx(2 / 3)


def test_a_judge_of_places_gives_one_half():
    rows = [(str(n), order, "win" if order == "first" else "loss") for n in range(20) for order in ("first", "second")]
    summary = summarize_judgments(table(*rows))
    assert summary["win_rate"]["ties_half"]["value"] == 0.5
    assert summary["order_effect"]["position_bias"]["value"] == 1


def test_identical_answers_are_ties_beside_others():
    found = pd.concat(
        [table(("1", "first", "win"), ("1", "second", "win")), table(("2", "apart", "tie"), status="identical")]
    )
    summary = summarize_judgments(found)
    assert (summary["wins"], summary["ties"], summary["identical"]) == (1, 1, 1)
    assert summary["verdicts"]["asked"] == 2


def test_nothing_judged_is_said():
    summary = summarize_judgments(table(("1", "first", None)))
    assert summary["n"] == 0 and "no question has a verdict" in state_result("a", "b", summary)


def test_what_the_sentence_says():
    better = summarize_judgments(table(*[(str(n), "apart", "win") for n in range(30)]))
    even = summarize_judgments(table(*[(str(n), "apart", ("win", "loss", "win")[n % 3]) for n in range(12)]))
    note_adjusted([better, even])
    assert better["n_compared"] == 2 and better["p_adjusted"] == pytest.approx(2 * better["p_value"])
    assert state_result("A", "DPO", better).startswith("A answers better than DPO by this judge: win rate 100.0 %")
    said = state_result("B", "DPO", even)
    assert said.startswith("B and DPO cannot be told apart on 12 questions") and "takes about" in said
    same = summarize_judgments(table(*[(str(n), "apart", ("win", "loss")[n % 2]) for n in range(12)]))
    for summary in (same, to_json_plain(same)):  # in a file, the number of questions is null
        assert state_result("B", "DPO", summary).endswith("counting a tie as half.")
