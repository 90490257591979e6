"""The grammar read back: every built-in answer gets the quality it was drawn with, and what is no answer gets less."""

from __future__ import annotations

import random

import pytest

from dpotool.data.demo import (
    DRAFT_SHARES,
    draw_answer,
    draw_facts,
    generate_demo_rows,
    load_topics,
    pick,
    rate_answer,
    render_answer,
)
from dpotool.data.demo_reading import rate_text, read_request


def test_every_prompt_is_read():
    for row in generate_demo_rows("test"):
        request = read_request(row["prompt"])
        assert request is not None
        for side in ("chosen", "rejected"):
            assert rate_text(request, row[side]).is_whole, row[side]


def test_quality_is_what_was_drawn():
    """The slow truth is the draw itself. An answer that two draws can write has the better one's quality."""
    rng = random.Random(7)
    n_same = 0
    for number in range(450):
        topic = load_topics()[number % len(load_topics())]
        facts, answer = draw_facts(rng, topic), draw_answer(rng, topic, DRAFT_SHARES)
        request = read_request(f"User: {pick(rng, topic.requests).format(**facts)}\nAssistant:")
        assert request is not None and request.topic is topic
        reading = rate_text(request, render_answer(topic, answer, facts))
        drawn = rate_answer(topic, answer)
        assert reading.is_whole and reading.quality >= drawn - 1e-12
        n_same += abs(reading.quality - drawn) < 1e-12
    assert n_same >= 440, n_same


def test_by_hand():
    """Weather has one slot: right 1, vague 0, wrong -1."""
    request = read_request("User: Will it be hot, cold or wet in Spain on Sunday?\nAssistant:")
    assert request is not None
    answers = {"It is hot there.": 1, "It is rather hot there.": 1, "It is fine there.": 0, "It is wet there.": -1}
    assert {answer: rate_text(request, answer).quality for answer in answers} == answers


@pytest.mark.parametrize("answer", ["", "42", "I am a language model.", "It is there hot"])
def test_what_the_grammar_cannot_write_is_no_whole_answer(answer: str):
    request = read_request("User: Will it be hot, cold or wet in Spain on Sunday?\nAssistant:")
    assert request is not None
    assert not rate_text(request, answer).is_whole


def test_a_cut_answer_keeps_what_it_has():
    request = read_request("User: How long should I cook fish for 3 people on Monday?\nAssistant:")
    assert request is not None
    whole, cut = (
        "Of course! Steam the fish for 9 minutes slowly with the lid on",
        "Of course! Steam the fish for 9 minutes",
    )
    assert -1 < rate_text(request, cut).quality < rate_text(request, whole + ", then serve it.").quality
    assert rate_text(request, "Steam the fish for 40 minutes").quality == -1


def test_other_prompts_are_none():
    assert read_request("User: What is the capital of Spain?\nAssistant:") is None
