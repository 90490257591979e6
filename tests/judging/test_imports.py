"""Judgments made elsewhere: three formats read, and the published ones counted as they were published."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from dpotool.compare.win_rates import merge_judgments, summarize_judgments
from dpotool.errors import DpotoolError
from dpotool.judging.answers import read_answers
from dpotool.judging.imports import import_judgments, import_ratings
from dpotool.judging.judgments import build_judgment_frame

REAL = Path(__file__).parents[3] / "shared" / "data" / "judging"


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_papers_replies(tmp_path: Path):
    """The model is A: a win, a loss, a tie, and one that is none."""
    replies = ["A\nbetter", "B.", "Tie", "Neither"]
    rows = [{"question_id": n, "response": reply} for n, reply in enumerate(replies)]
    _, (found,) = import_judgments(write(tmp_path / "replies.jsonl", rows), {}, {})
    assert [each.verdict for each in found.judgments] == ["win", "loss", "tie", None]
    summary = summarize_judgments(build_judgment_frame(found.judgments))
    assert (summary["n"], summary["without_outcome"], summary["win_rate"]["ties_half"]["value"]) == (3, 1, 0.5)
    assert summary["order_effect"] is None, "one order says nothing of places"


def test_fastchats_two_games(tmp_path: Path):
    """Agreeing games count, games that differ are a tie, an error is no outcome."""
    games = [("model_1", "model_1"), ("model_1", "model_2"), ("tie", "tie"), ("model_2", "error"), ("x", "x")]
    rows = [
        {
            "question_id": n,
            "model_1": "x",
            "model_2": "y",
            "g1_winner": a,
            "g2_winner": b,
            "judge": ["gpt-4", "pair-v2"],
        }
        for n, (a, b) in enumerate(games)
    ]
    _, (found,) = import_judgments(write(tmp_path / "pair.jsonl", rows), {}, {})
    assert (found.model, found.baseline, found.judge) == ("x", "y", "gpt-4")
    merged = merge_judgments(build_judgment_frame(found.judgments))
    assert merged["outcome"].fillna(9).tolist() == [1, 0, 0, 9, 1]
    assert merged["status"].tolist() == ["judged", "orders differ", "judged", "no verdict in the reply", "judged"]


def test_alpaca_evals_preferences(tmp_path: Path):
    rows = [
        {"instruction": f"i{n}", "output_1": "long one", "output_2": "b", "preference": p, "generator_2": "m"}
        for n, p in enumerate([1, 2.0, 1.5, 1.83, None])
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    format_, (found,) = import_judgments(str(path), {}, {})
    assert format_.name.startswith("AlpacaEval") and found.model == "m"
    assert [each.verdict for each in found.judgments] == ["loss", "win", "tie", "win", None]
    assert found.judgments[0].model_length == 1 and found.judgments[3].model_score == pytest.approx(0.83)


def test_single_grading(tmp_path: Path):
    rows = [
        {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "score": s, "turn": t}
        for s, t in ((8, 1), (-1, 2))
    ]
    judge, found = import_ratings(write(tmp_path / "single.jsonl", rows), {"81": "writing"})
    assert (judge, list(found)) == ("gpt-4", ["m"]) and found["m"]["rating"].fillna(0).tolist() == [8, 0]
    assert found["m"]["status"].tolist() == ["judged", "no rating in the reply"]
    with pytest.raises(DpotoolError, match="question 81, turn 1 of m was graded twice"):
        import_ratings(write(tmp_path / "twice.jsonl", [*rows, rows[0]]), {})
    with pytest.raises(DpotoolError, match="holds the grades of several judges; got gpt-4, other"):
        import_ratings(write(tmp_path / "two.jsonl", [*rows, rows[0] | {"judge": "other"}]), {})


def test_what_is_no_judgment_is_refused(tmp_path: Path):
    with pytest.raises(DpotoolError, match="no known format of judgments; expected FastChat"):
        import_judgments(write(tmp_path / "x.jsonl", [{"a": 1}]), {}, {})
    with pytest.raises(DpotoolError, match="question 1 was judged twice"):
        import_judgments(write(tmp_path / "y.jsonl", [{"question_id": 1, "response": "A"}] * 2), {}, {})


PUBLISHED = [
    ("sft-vs-dpo", 480, 1413, 106, 1),
    ("shift-0.55-vs-dpo", 816, 1025, 158, 1),
    ("shift-0.75-vs-dpo", 804, 933, 261, 2),
    ("shift-0.95-vs-dpo", 930, 676, 393, 1),
    ("capybara-shift-0.95-vs-dpo", 616, 651, 656, 77),
]


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the published judgments are not here (../shared/data/judging)")
@pytest.mark.parametrize(("name", "wins", "losses", "ties", "none"), PUBLISHED)
def test_published_counts(name: str, wins: int, losses: int, ties: int, none: int):
    _, (found,) = import_judgments(str(REAL / "ultrafeedback" / "judgments" / f"{name}.jsonl.gz"), {}, {})
    summary = summarize_judgments(build_judgment_frame(found.judgments))
    counted = (summary["wins"], summary["losses"], summary["ties"], summary["without_outcome"])
    assert counted == (wins, losses, ties, none)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the published judgments are not here (../shared/data/judging)")
def test_published_rates_and_what_length_had_to_do_with_them():
    folder = REAL / "ultrafeedback"
    ours = {a.question_id: a for a in read_answers(folder / "answers" / "shift-0.95.jsonl.gz")}
    theirs = {a.question_id: a for a in read_answers(folder / "answers" / "dpo.jsonl.gz")}
    _, (found,) = import_judgments(str(folder / "judgments" / "shift-0.95-vs-dpo.jsonl.gz"), ours, theirs)
    summary = summarize_judgments(build_judgment_frame(found.judgments))
    # of the 1,999 questions with a verdict; with the one without it in the denominator ties as half give 56.3
    rates = [
        round(100 * summary["win_rate"][name]["value"], 1) for name in ("ties_half", "without_ties", "ties_as_wins")
    ]
    assert rates == [56.4, 57.9, 66.2]
    assert 0.56 <= summary["length_control"]["longer_preferred"]["mean"] <= 0.61


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="the published judgments are not here (../shared/data/judging)")
def test_the_page_is_what_the_command_writes(monkeypatch: pytest.MonkeyPatch):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    script = importlib.import_module("published_judgments")
    found = {title: script.summarize(REAL / "ultrafeedback", *names) for title, names in script.SETS.items()}
    page = (root / "docs" / "paper-check.md").read_text(encoding="utf-8")
    assert script.write_tables(found) in page
    assert script.tabulate_answers(REAL / "ultrafeedback") in page


ANSWER = {
    "question_id": "1",
    "answer": ["yes"],
    "prompt": ["Is it?"],
    "token_ids": [[3, 2]],
    "settings": {},
    "key": "k",
}
ODD = [{"answer": "yes"}, {"answer": []}, {"prompt": [1.5]}, {"settings": "x"}, {"token_ids": [[None]]}, {"sample": -1}]


@pytest.mark.parametrize("odd", ODD)
def test_a_line_that_is_no_answer_is_one_line(tmp_path: Path, odd: dict[str, object]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ANSWER))
    assert read_answers(path)[0].text == "yes"
    path.write_text(json.dumps(ANSWER | odd))
    with pytest.raises(DpotoolError, match=r"a.jsonl: question 1.*is not what it has to be"):
        read_answers(path)


GAME = {"question_id": 1, "model_1": "a", "model_2": "b", "g1_winner": "tie", "g2_winner": "tie", "turn": 1}
NOTE = {"instruction": "x", "output_1": "a", "output_2": "b", "preference": 1.0}
REPLY = {"question_id": 1, "response": "A"}


@pytest.mark.parametrize(
    "row", [GAME | {"turn": "x"}, GAME | {"model_1": [1]}, NOTE | {"output_1": None}, REPLY | {"question_id": [1]}]
)
def test_a_judgment_of_other_types_is_one_line(tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DpotoolError, match=r"j.jsonl: row 1.*is not what it has to be"):
        import_judgments(str(path), {}, {})
