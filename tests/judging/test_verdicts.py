"""Verdicts from odd replies: markup, labels, other languages, code, refusals, numbers; what is none stays none."""

from __future__ import annotations

import pytest

from dpotool.judging.verdicts import CONTRADICTORY, NO_VERDICT, read_brackets, read_first_word, read_rating


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", "A"),
        ("B.\n\nAssistant B is closer.", "B"),
        ("Tie\nBoth say the same.", "Tie"),
        ("TIE", "Tie"),
        ("  **A**\n\nbecause it is closer", "A"),
        ("# B", "B"),
        ("'Tie'", "Tie"),
        ("“A”", "A"),
        ("(B) since it is right", "B"),
        ("[[A]]", "A"),
        ("Output: A\n\nAssistant A's response is closer.", "A"),
        ("**Verdict:** B", "B"),
        ("Answer: Tie.", "Tie"),
        ("Assistant B\nis better", "B"),
        ("A: it is closer", "A"),
        ("A。因为它更接近参考答案。", "A"),
        ("A, because", "A"),
        ("B because it is right", "B"),
        ("A – more detail", "A"),
    ],
)
def test_verdicts(reply: str, choice: str):
    verdict = read_first_word(reply)
    assert (verdict.choice, verdict.problem, verdict.is_doubtful) == (choice, None, False)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "42955824",
        "17.642857142857143",
        "Neither",
        "Neither A nor B is correct.",
        "D",
        "AB",
        "A better answer would name the city.",
        "a",
        "Based on the criteria, I would output: Tie.",
        "The final answer is: TIE",
        "```javascript\nB\n```\nAssistant B's response is more comprehensive",
        "```\nA\n```",
        "答案是A",
        "Ниже: А",
        "Ä",
        "Bien, la respuesta A",
        "Tied to its context, A wins",
        "A's answer is better",
        "I cannot judge this.",
    ],
)
def test_no_verdict(reply: str):
    verdict = read_first_word(reply)
    assert (verdict.choice, verdict.problem) == (None, NO_VERDICT)


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A is not correct because both are wrong.", "A"),
        ("B is incorrect and A is also incorrect since neither matches", "B"),
        ("Tie is not the correct choice here, since one is closer", "Tie"),
        ("A: Tie.\n\nBoth", "A"),
    ],
)
def test_a_verdict_taken_back_is_doubtful(reply: str, choice: str):
    verdict = read_first_word(reply)
    assert (verdict.choice, verdict.is_doubtful) == (choice, True)


def test_brackets():
    assert read_brackets("A is better, so my verdict is [[A]]. Yes, [[A]].").choice == "A"
    assert read_brackets("[[C]]").choice == "Tie"
    assert read_brackets("[[A]] or [[B]]").problem == CONTRADICTORY
    assert read_brackets("A").problem == NO_VERDICT


@pytest.mark.parametrize(
    ("reply", "rating"),
    [("Rating: [[7]]", 7), ("[[8.5]]", 8.5), ("Rating: [6]", 6), ("[[0]]", None), ("[[11]]", None), ("7", None)],
)
def test_ratings(reply: str, rating: float | None):
    assert read_rating(reply).rating == rating


def test_two_ratings_are_none():
    assert read_rating("The first turn gets [[5]], the second [[9]].").problem == CONTRADICTORY
