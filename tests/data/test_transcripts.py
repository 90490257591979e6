"""Where an implicit prompt ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpotool.data.rows import InvalidRowError
from dpotool.data.transcripts import is_transcript, split_messages, split_text, split_transcript

OPENING = "\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{OPENING} Hello", True),
        ("Human: Hi\n\nAssistant: Hello", False),
        ("\n\nHuman: Hi", False),
        ("Assistant: Hello", False),
    ],
)
def test_is_transcript(text: str, expected: bool) -> None:
    assert is_transcript(text) is expected


def test_a_transcript_is_split_behind_the_last_shared_assistant_turn() -> None:
    """Both replies begin with 'I am': TRL would put that into the prompt."""
    shared = f"{OPENING} Hello\n\nHuman: How are you?\n\nAssistant:"
    assert split_transcript(f"{shared} I am well.", f"{shared} I am not.") == (shared, " I am well.", " I am not.")


def test_transcripts_that_part_in_an_earlier_turn_keep_the_later_turns() -> None:
    chosen = f"{OPENING} Yes\n\nHuman: Why?\n\nAssistant: So."
    prompt, completion, _ = split_transcript(chosen, f"{OPENING} No")
    assert prompt == OPENING
    assert completion == " Yes\n\nHuman: Why?\n\nAssistant: So."


def test_an_assistant_turn_only_one_of_them_has_ends_no_prompt() -> None:
    """'\\n\\nAssistant' is shared, its colon is not: the turn before it is the last one both have."""
    chosen, rejected = f"{OPENING} Yes\n\nAssistant: So.", f"{OPENING} Yes\n\nAssistants help."
    assert split_transcript(chosen, rejected)[0] == OPENING


def test_transcripts_without_a_shared_assistant_turn_are_invalid() -> None:
    with pytest.raises(InvalidRowError, match="share no 'Assistant:' turn"):
        split_transcript("\n\nHuman: A\n\nAssistant: x", "\n\nHuman: B\n\nAssistant: x")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue", "The sky is black", "The sky is"),  # never inside a word, the space goes to the completions
        ("The sky is blue", "The sky is", "The sky"),  # one begins the other: both keep something
        ("The sky is", "The sky is", "The sky"),
        ("Say don't", "Say don", "Say"),
        ("Say don't", "Say don'ts", "Say"),
        ("Pi is 3.14", "Pi is 3.15", "Pi is"),
        ("At 12:30", "At 12:45", "At"),
        ("a snake_case", "a snake_oil", "a"),
        ("It is.", "It is!", "It is"),
        ("Answer:yes", "Answer:no", "Answer:"),
        ("well-known", "well-being", "well-"),
        ("Why?\nSo", "Why?\nNo", "Why?\n"),
        ("Two  spaces", "Two  tabs", "Two "),
        ("天空是蓝色", "天空是绿色", "天空是"),  # no white space between words
        ("Ein cafe\u0301 x", "Ein cafe x", "Ein"),  # e and its accent stay together
        ("Look 👩‍🚀!", "Look 👩‍🔬!", "Look"),  # one picture of several characters
    ],
)
def test_text_is_split_at_a_word_boundary(chosen: str, rejected: str, prompt: str) -> None:
    assert split_text(chosen, rejected)[0] == prompt
    assert split_text(rejected, chosen)[0] == prompt


@pytest.mark.parametrize(("chosen", "rejected"), [("Yes", "No"), ("bl ue", "black"), ("a", "a"), (" a", " b")])
def test_text_with_no_word_in_common_is_invalid(chosen: str, rejected: str) -> None:
    with pytest.raises(InvalidRowError, match="there is no 'prompt'"):
        split_text(chosen, rejected)


@given(st.text(" ab'.3é\n天", max_size=8), st.text(" ab'.3é\n天", min_size=1), st.text(" ab'.3é\n天", min_size=1))
def test_split_text_loses_nothing(shared: str, chosen: str, rejected: str) -> None:
    try:
        prompt, own, other = split_text(shared + chosen, shared + rejected)
    except InvalidRowError:
        return
    assert prompt
    assert own
    assert other
    assert prompt + own == shared + chosen
    assert prompt + other == shared + rejected


def _messages(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def test_messages_are_split_where_they_differ() -> None:
    chosen, rejected = _messages("Hi", "Hello", "Why?", "So."), _messages("Hi", "Hello", "Why?", "No.")
    assert split_messages(chosen, rejected) == (chosen[:3], chosen[3:], rejected[3:])


def test_identical_conversations_keep_their_last_message() -> None:
    both = _messages("Hi", "Hello")
    assert split_messages(both, both) == (both[:1], both[1:], both[1:])


def test_conversations_with_different_openings_are_invalid() -> None:
    with pytest.raises(InvalidRowError, match="share no first message"):
        split_messages(_messages("Hi", "Hello"), _messages("Ho", "Hello"))
