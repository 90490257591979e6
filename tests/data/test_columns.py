"""Formats by their columns, rows to pairs, and what is said of malformed rows."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from dpotool.data.columns import FORMATS, IMPLICIT_PROMPT, convert_row, detect_layout, select_columns
from dpotool.data.pairs import PreferencePair
from dpotool.data.rows import InvalidRowError
from dpotool.errors import DpotoolError

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
YES = {"role": "assistant", "content": "Yes"}
NO = {"role": "assistant", "content": "No"}

TEXT = {"prompt": "Hi", "chosen": " Yes", "rejected": " No"}
ULTRAFEEDBACK = {
    "prompt": "Hi",
    "prompt_id": "a1",
    "chosen": [USER, YES],
    "rejected": [USER, NO],
    "messages": [USER, YES],
    "score_chosen": 8.5,
    "score_rejected": 6.0,
}
CAPYBARA = {
    "source": "Airoboros",
    "chosen": [USER, YES, USER, YES],
    "chosen_rating": 5,
    "chosen_model": "m",
    "rejected": [USER, YES, USER, NO],
    "rejected_rating": 4,
    "rejected_model": "n",
}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}


def convert(row: dict[str, Any], *more: dict[str, Any]) -> PreferencePair:
    return convert_row(0, row, detect_layout([row, *more], "rows"))


@pytest.mark.parametrize(
    ("row", "format_", "prompt", "chosen", "rejected"),
    [
        (TEXT, "text", "Hi", " Yes", " No"),
        ({"chosen": "Hi Yes", "rejected": "Hi No"}, "text-implicit-prompt", "Hi", " Yes", " No"),
        (HH, "hh-transcript", "\n\nHuman: Hi\n\nAssistant:", " Yes", " No"),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, "messages", [USER], [YES], [NO]),
        (CAPYBARA, "messages-implicit-prompt", [USER, YES, USER], [YES], [NO]),
        (ULTRAFEEDBACK, "messages-prompt-text", [USER], [YES], [NO]),
        ({"prompt": "Hi", "chosen": [YES], "rejected": [NO]}, "messages-prompt-text", [USER], [YES], [NO]),
        (
            {"prompt": "Hi", "chosen": [SYSTEM, USER, YES], "rejected": [SYSTEM, USER, NO]},
            "messages-prompt-text",
            [SYSTEM, USER],
            [YES],
            [NO],
        ),
    ],
)
def test_every_format_is_recognised(row: Any, format_: str, prompt: Any, chosen: Any, rejected: Any) -> None:
    pair = convert(row)
    assert detect_layout([row], "rows").format == format_
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)
    assert pair.is_conversational is isinstance(chosen, list)


def test_the_mapping_names_the_columns_that_are_read() -> None:
    assert detect_layout([CAPYBARA], "rows").columns == {
        "prompt": IMPLICIT_PROMPT,
        "chosen": "chosen",
        "rejected": "rejected",
        "score_chosen": "chosen_rating",
        "score_rejected": "rejected_rating",
    }


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen_rating", "rejected_rating"),
        ("rating_chosen", "rating_rejected"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_avg_rating", "rejected_avg_rating"),
    ],
)
def test_scores_are_read_from_either_spelling(chosen: str, rejected: str) -> None:
    pair = convert(TEXT | {chosen: 2, rejected: 1.5})
    assert (pair.score_chosen, pair.score_rejected) == (2.0, 1.5)


def test_one_score_column_of_two_is_no_score() -> None:
    assert convert(TEXT | {"score_chosen": 2}).score_chosen is None


def test_a_missing_score_is_none_as_null_and_as_nan() -> None:
    scored = TEXT | {"score_chosen": 2.0, "score_rejected": 1.0}
    pair = convert(scored | {"score_chosen": None, "score_rejected": math.nan}, scored)
    assert (pair.score_chosen, pair.score_rejected) == (None, None)


def test_a_column_that_is_empty_throughout_is_no_column() -> None:
    """A parquet file may carry `prompt` for every row as null: the prompt is implicit all the same."""
    assert detect_layout([HH | {"prompt": None}], "rows").format == "hh-transcript"


def test_the_first_good_row_decides() -> None:
    assert detect_layout([{"chosen": 3, "rejected": "x"}, HH], "rows").format == "hh-transcript"


def test_empty_keys_of_a_message_are_dropped() -> None:
    """Columnar files give every message every key that any message has."""
    pair = convert({"prompt": [USER | {"name": None}], "chosen": [YES], "rejected": [NO]})
    assert pair.prompt == [USER]


def test_template_options_are_kept_with_the_row() -> None:
    row = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
    tool = {"type": "function", "function": {"name": "look"}}
    options = {"tools": '[{"type": "function", "function": {"name": "look"}}]', "chat_template_kwargs": {"a": 1}}
    assert convert(row | options).template_kwargs == {"tools": [tool], "a": 1}
    assert convert(row).template_kwargs is None


def test_a_message_that_calls_a_tool_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    pair = convert({"prompt": [USER], "chosen": [call], "rejected": [NO]})
    assert pair.chosen == [{"role": "assistant", "tool_calls": [{"type": "function"}]}]


@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_a_column_missing_throughout_is_an_error_that_lists_the_columns(name: str) -> None:
    row = {key: value for key, value in TEXT.items() if key != name} | {"question": "x"}
    with pytest.raises(DpotoolError, match=rf"pairs.jsonl: no '{name}' column; expected chosen and rejected.*question"):
        detect_layout([row], "pairs.jsonl")


MESSAGES = {"prompt": [USER], "chosen": [YES], "rejected": [NO]}
SCORED = {"score_chosen": 2, "score_rejected": 1}


@pytest.mark.parametrize(
    ("good", "change", "reason"),
    [
        (TEXT, {"rejected": ""}, "'rejected' is empty"),
        (TEXT, {"chosen": " \n"}, "'chosen' is empty"),
        (TEXT, {"chosen": None}, "'chosen' is missing"),
        (TEXT, {"prompt": None}, "'prompt' is missing"),
        (TEXT, {"chosen": 3}, "'chosen' is a number, expected a string"),
        (TEXT, {"chosen": [YES]}, "'chosen' is a list, expected a string"),
        (TEXT, {"rejected": True}, "'rejected' is a boolean, expected a string"),
        (TEXT, {"prompt": {"a": 1}}, "'prompt' is an object, expected a string"),
        (TEXT, {"chosen": "\ud83d"}, "'chosen' has half a surrogate pair: at character 0"),
        (TEXT | SCORED, {"score_chosen": "high"}, "'score_chosen' is a string, expected a number"),
        (TEXT | SCORED, {"score_rejected": True}, "'score_rejected' is a boolean, expected a number"),
        (TEXT | SCORED, {"score_rejected": math.inf}, "'score_rejected' is infinite"),
        (HH, {"chosen": ""}, "'chosen' is empty"),
        (HH, {"chosen": "\n\nHuman: Hi\n\nAssistant: "}, "'chosen' is empty"),
        (MESSAGES, {"chosen": []}, "'chosen' is empty"),
        (MESSAGES, {"prompt": []}, "'prompt' is empty"),
        (MESSAGES, {"chosen": 3}, "'chosen' is a number, expected a list of messages"),
        (MESSAGES, {"chosen": ["Yes"]}, "'chosen' holds a string, expected messages with 'role' and 'content'"),
        (MESSAGES, {"chosen": [{"content": "x"}]}, "'chosen' has a message whose 'role' is missing"),
        (MESSAGES, {"chosen": [{"role": "user", "content": 3}]}, "'chosen' has a message whose 'content' is a number"),
        (MESSAGES, {"chosen": [{"role": "assistant", "content": "\n"}]}, "'chosen' is empty"),
        (MESSAGES, {"tools": "{"}, "'tools' is no JSON list"),
        (MESSAGES, {"tools": {}}, "'tools' is an object, expected a list"),
        (MESSAGES, {"chat_template_kwargs": 3}, "'chat_template_kwargs' is a number, expected an object"),
        (ULTRAFEEDBACK, {"rejected": [YES]}, "'chosen' and 'rejected' share no first message"),
    ],
)
def test_a_malformed_row_says_what_is_wrong(good: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRowError) as caught:
        convert_row(0, good | change, detect_layout([good], "rows"))
    assert str(caught.value).startswith(reason)


def test_only_known_columns_are_read_unless_one_is_missing() -> None:
    assert select_columns(["prompt", "chosen", "messages", "rejected", "score_chosen"]) == [
        "prompt",
        "chosen",
        "rejected",
        "score_chosen",
    ]
    assert select_columns(["question", "chosen"]) == ["question", "chosen"]


DOCS = Path(__file__).parents[2] / "docs" / "data-formats.md"
EXAMPLES = re.findall(r"^### `([a-z-]+)`\n.*?^```json\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)


def test_the_docs_show_every_format() -> None:
    assert sorted(format_ for format_, _ in EXAMPLES) == sorted(FORMATS)


@pytest.mark.parametrize(("format_", "block"), EXAMPLES)
def test_the_examples_in_the_docs_have_the_format_they_are_shown_for(format_: str, block: str) -> None:
    rows = [json.loads(line) for line in block.splitlines()]
    layout = detect_layout(rows, "docs")
    assert layout.format == format_
    pairs = [convert_row(index, row, layout) for index, row in enumerate(rows)]
    assert len(pairs) == 2
    if format_ == "text-implicit-prompt":
        assert [pair.prompt for pair in pairs] == ["The sky is", "Q: 1 + 1?\nA:"]
