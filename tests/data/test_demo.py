"""The built-in pairs: the same everywhere, of the promised sizes, and as much alike as two answers of one model."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from statistics import mean
from typing import Any

import pytest

from dpotool.data.demo import (
    SPLITS,
    Slot,
    Topic,
    draw_facts,
    generate_demo_rows,
    load_topics,
    rate_answer,
    render_answer,
)
from dpotool.errors import DpotoolError

ROWS_SHA256 = "dc35ee00ff01209d76b0a00f125ef9534cb87ccc76567a823b76e87d13bc7ee4"
"""Of all splits as JSON. A change of the pairs changes every number the demo shows: say so in the changelog."""


def _shared_words(row: dict[str, Any]) -> float:
    """Share of the words of both answers that the other one has too (Dice, with multiplicity)."""
    chosen, rejected = (Counter(re.findall(r"\w+", row[name].lower())) for name in ("chosen", "rejected"))
    return 2 * (chosen & rejected).total() / (chosen.total() + rejected.total())


def test_the_rows_are_the_same_everywhere() -> None:
    rows = json.dumps([generate_demo_rows(split) for split in SPLITS], sort_keys=True)
    assert hashlib.sha256(rows.encode()).hexdigest() == ROWS_SHA256


def test_rows_can_be_changed_without_changing_the_next_callers() -> None:
    generate_demo_rows("test")[0]["prompt"] = "changed"
    assert generate_demo_rows("test")[0]["prompt"] != "changed"


def test_sizes_and_columns() -> None:
    assert {split: len(generate_demo_rows(split)) for split in SPLITS} == {"test": 400, "train": 2000, "sft": 2000}
    columns = {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}
    assert all(row.keys() == columns for split in SPLITS for row in generate_demo_rows(split))


def test_no_prompt_stands_twice_in_any_split() -> None:
    prompts = [row["prompt"] for split in SPLITS for row in generate_demo_rows(split)]
    assert len(prompts) == len(set(prompts))


def test_scores_rank_the_answers_strictly_and_vary() -> None:
    rows = generate_demo_rows("train")
    assert all(1 <= row["score_rejected"] < row["score_chosen"] <= 10 for row in rows)
    assert len({row["score_chosen"] - row["score_rejected"] for row in rows}) > 8


@pytest.mark.parametrize("split", ["train", "test"])
def test_chosen_and_rejected_share_most_of_their_words_but_are_never_the_same(split: str) -> None:
    rows = generate_demo_rows(split)
    assert all(row["chosen"] != row["rejected"] for row in rows)
    assert 0.65 < mean(_shared_words(row) for row in rows) < 0.9
    assert mean(_shared_words(row) > 0.5 for row in rows) > 0.8


def test_the_chosen_answers_of_demonstrations_are_better_than_those_of_pairs() -> None:
    """That is what makes DPO's first stage a stage of its own: pairs hold answers the SFT model finds unlikely."""
    demonstrated, drafted = (
        mean(row["score_chosen"] for row in generate_demo_rows(split)) for split in ("sft", "train")
    )
    assert demonstrated > drafted + 0.5


def test_texts_are_tidy() -> None:
    """Nothing is left unfilled, prompts end where an answer starts, answers are sentences with single spaces."""
    for split in SPLITS:
        for row in generate_demo_rows(split):
            assert re.fullmatch(r"User: [A-Z][^\n{}]*[.?]\nAssistant:", row["prompt"])
            for name in ("chosen", "rejected"):
                assert re.fullmatch(r" [A-Z0-9][^\n{}]*[.!?]", row[name])
                assert "  " not in row[name]


def test_an_unknown_split_names_those_there_are() -> None:
    with pytest.raises(DpotoolError, match=r"^builtin:demo: no such split; expected test, train, sft, got 'valid'$"):
        generate_demo_rows("valid")


def test_the_grammar_needs_no_torch() -> None:
    check = "import sys; import dpotool.data.demo as d; d.generate_demo_rows('test'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_an_answer_is_rated_by_the_weighted_mean_of_its_levels() -> None:
    """Good (+1) with weight 3 and poor (-1) with weight 1: (3 - 1) / 4 = 0.5; all fair is 0."""
    slot = (("g",), ("f",), ("p",))
    topic = Topic(requests=("",), answer="{a} {b}", slots={"a": Slot(*slot, weight=3.0), "b": Slot(*slot)})
    assert rate_answer(topic, {"a": (0, "g"), "b": (2, "p")}) == 0.5
    assert rate_answer(topic, {"a": (1, "f"), "b": (1, "f")}) == 0.0


def test_an_answer_is_written_with_capitals_and_without_the_parts_left_out() -> None:
    slots = {name: Slot(("",), ("",), ("",)) for name in ("opening", "body", "closing")}
    topic = Topic(requests=("",), answer="{opening} boil {body}. {closing}", slots=slots)
    answer = {"opening": (1, ""), "body": (0, "the {food} at home! then rest"), "closing": (0, "enjoy it!")}
    assert render_answer(topic, answer, {"food": "rice"}) == "Boil the rice at home! Then rest. Enjoy it!"


def test_wrong_facts_are_never_the_right_ones() -> None:
    rng = random.Random(0)
    drawn = [draw_facts(rng, topic) for topic in load_topics() for _ in range(50)]
    wrong = [(facts[name], facts[f"wrong_{name}"]) for facts in drawn for name in facts if f"wrong_{name}" in facts]
    assert len(wrong) > 1000
    assert all(right != other for right, other in wrong)


def test_a_sum_is_the_total_of_its_two_numbers() -> None:
    topic = Topic(requests=("",), answer="", slots={}, choices={"a": ("2", "3"), "b": ("5", "6")}, sum_of=("a", "b"))
    facts = draw_facts(random.Random(0), topic)
    assert int(facts["sum"]) == int(facts["a"]) + int(facts["b"])
