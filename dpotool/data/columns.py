"""From the columns of a row to a preference pair: TRL's preference formats, recognised by their columns and types.

    text                      prompt, chosen, rejected: strings
    text-implicit-prompt      chosen, rejected: strings that begin alike
    hh-transcript             chosen, rejected: HH-RLHF 'Human:/Assistant:' transcripts
    messages                  prompt, chosen, rejected: lists of chat messages
    messages-implicit-prompt  chosen, rejected: whole conversations (Capybara-preferences, trl-lib)
    messages-prompt-text      the same with the prompt as a string beside them (UltraFeedback-binarized)

The format is that of the first row that has one; every other row must have it too. Scores are read where the source
has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from dpotool.data.pairs import PreferencePair, Text
from dpotool.data.rows import (
    MESSAGE_COLUMNS,
    QUESTION_COLUMNS,
    InvalidRowError,
    Row,
    is_blank,
    normalize_row,
    read_completion,
    read_messages,
    read_score,
    read_string,
    read_template_kwargs,
    strip_nulls,
)
from dpotool.data.transcripts import is_transcript, split_messages, split_text, split_transcript
from dpotool.errors import DpotoolError
from dpotool.wording import count

TEXT_COLUMNS = ("prompt", "chosen", "rejected")
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
KNOWN_COLUMNS = frozenset((*TEXT_COLUMNS, *TEMPLATE_COLUMNS, *QUESTION_COLUMNS, *chain.from_iterable(SCORE_COLUMNS)))

IMPLICIT_PROMPT = "(common beginning of chosen and rejected)"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of one source are to be read."""

    format: str
    columns: dict[str, str]
    """dpotool field -> column it is read from."""
    unread: tuple[str, ...] = ()
    """Columns that are filled, sound like part of the prompt, and are not read."""
    repeats_prompt: bool = False
    """Every completion begins with its row's prompt, which is taken off."""


def select_columns(available: list[str]) -> list[str]:
    """Returns the columns worth reading; all of them where a completion is missing, so that the error can list them."""
    if not {"chosen", "rejected"} <= set(available):
        return available
    superfluous = MESSAGE_COLUMNS if "prompt" in available else ()
    return [name for name in available if name in KNOWN_COLUMNS and name not in superfluous]


def detect_layout(rows: Sequence[Row], data: str) -> Layout:
    """Recognises the format of a source from its columns (those not empty in every row) and its first valid row.

    Raises:
        DpotoolError: no row has a `chosen` or no row has a `rejected` column.
    """
    rows = [normal for row in rows if (normal := _try_normalize(row)) is not None] or rows
    filled = {name for row in rows for name, value in row.items() if value is not None}
    for name in ("chosen", "rejected"):
        if name not in filled:
            raise DpotoolError(
                f"no {name!r} column",
                where=data,
                expected="chosen and rejected, with or without prompt",
                got=", ".join(dict.fromkeys(key for row in rows for key in row)) or "no columns",
                remedy="Rename the columns of the file to these",
            )
    has_prompt = "prompt" in filled
    format_ = next((found for row in rows if (found := _recognise(row, has_prompt))), None)
    if format_ is None:  # no row is well formed: any layout will do to say what is wrong with the first
        format_ = "text" if has_prompt else "text-implicit-prompt"
    unread = tuple(name for name in QUESTION_COLUMNS if name in filled and not _is_read(name, rows))
    if unread and format_ in ("text-implicit-prompt", "messages-implicit-prompt"):
        _refuse_hidden_prompt(rows, unread, data)
    return Layout(format_, _map_columns(format_, filled), unread, _repeats_prompt(rows, format_, data))


def _try_normalize(row: Row) -> Row | None:
    try:
        return normalize_row(row)
    except InvalidRowError:
        return None


def _is_read(name: str, rows: Sequence[Row]) -> bool:
    """Tells whether a column became the prompt."""
    return name in MESSAGE_COLUMNS and all(row.get("prompt") is not None for row in rows if row.get(name) is not None)


def _refuse_hidden_prompt(rows: Sequence[Row], unread: Sequence[str], data: str) -> None:
    """Refuses rows without a prompt whose question is in a column of another name and not in the completions."""
    for row in rows:
        texts = [json.dumps(row.get(name), ensure_ascii=False, default=str) for name in ("chosen", "rejected")]
        for name in unread:
            value = row.get(name)
            if value and not all(
                json.dumps(value, ensure_ascii=False, default=str).strip('"') in text for text in texts
            ):
                raise DpotoolError(
                    f"there is no 'prompt' column, and {', '.join(unread)} would not be read",
                    where=data,
                    expected="prompt, chosen and rejected",
                    got=", ".join(row),
                    remedy=f"Rename {next((n for n in unread if n != 'system'), unread[0])} to prompt as the model is "
                    "to see it, or write prompts as lists of messages",
                )


def _repeats_prompt(rows: Sequence[Row], format_: str, data: str) -> bool:
    """Tells whether every completion begins with its row's prompt.

    Raises:
        DpotoolError: most do and some do not, so that it is not clear what the prompt column means.
    """
    if format_ not in ("text", "messages"):
        return False
    found = [_begins_with_prompt(row) for row in rows if row.get("prompt")]
    if 0.5 < sum(found) / max(len(found), 1) < 1:
        raise DpotoolError(
            f"the completions of {sum(found)} of {count(len(found), 'row')} begin with the prompt, those of "
            "the others do not",
            where=data,
            remedy="Take the prompt off every chosen and rejected, or off none",
        )
    return bool(found) and all(found)


def _begins_with_prompt(row: Row) -> bool:
    prompt = row["prompt"]
    completions = [row.get(name) for name in ("chosen", "rejected")]
    return all(
        isinstance(completion, type(prompt)) and len(completion) > len(prompt) and completion[: len(prompt)] == prompt
        for completion in completions
    )


def _recognise(row: Row, has_prompt: bool) -> str | None:
    prompt, chosen, rejected = (row.get(name) for name in TEXT_COLUMNS)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if has_prompt:
            return "text" if isinstance(prompt, str) else None
        return "hh-transcript" if is_transcript(chosen) and is_transcript(rejected) else "text-implicit-prompt"
    if isinstance(chosen, list) and isinstance(rejected, list):
        if not has_prompt:
            return "messages-implicit-prompt"
        if isinstance(prompt, str):
            return "messages-prompt-text"
        return "messages" if isinstance(prompt, list) else None
    return None


def _map_columns(format_: str, filled: set[str]) -> dict[str, str]:
    columns = {name: name for name in TEXT_COLUMNS}
    if format_ not in ("text", "messages", "messages-prompt-text"):
        columns["prompt"] = IMPLICIT_PROMPT
    for chosen, rejected in SCORE_COLUMNS:
        if chosen in filled and rejected in filled:
            columns |= {"score_chosen": chosen, "score_rejected": rejected}
            break
    return columns | {name: name for name in TEMPLATE_COLUMNS if name in filled}


def convert_row(pair_id: int, row: Row, layout: Layout) -> PreferencePair:
    """Makes a pair of one row.

    Raises:
        InvalidRowError: a field is missing, of the wrong type or empty, or the prompt cannot be separated from the
            answers.
    """
    row = normalize_row(row)
    prompt, chosen, rejected = _CONVERTERS[layout.format](row)
    if layout.repeats_prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    for name, completion in (("chosen", chosen), ("rejected", rejected)):
        if is_blank(completion):
            raise InvalidRowError(f"{name!r} is empty")
    return PreferencePair(
        pair_id,
        prompt,
        chosen,
        rejected,
        score_chosen=read_score(row, layout.columns.get("score_chosen")),
        score_rejected=read_score(row, layout.columns.get("score_rejected")),
        template_kwargs=strip_nulls(read_template_kwargs(row)),
    )


def _convert_text(row: Row) -> tuple[Text, Text, Text]:
    return read_string(row, "prompt"), read_string(row, "chosen"), read_string(row, "rejected")


def _convert_text_implicit(row: Row) -> tuple[Text, Text, Text]:
    return split_text(read_completion(row, "chosen"), read_completion(row, "rejected"))


def _convert_transcript(row: Row) -> tuple[Text, Text, Text]:
    return split_transcript(read_completion(row, "chosen"), read_completion(row, "rejected"))


def _convert_messages(row: Row) -> tuple[Text, Text, Text]:
    return read_messages(row, "prompt"), read_messages(row, "chosen"), read_messages(row, "rejected")


def _convert_messages_implicit(row: Row) -> tuple[Text, Text, Text]:
    return split_messages(read_messages(row, "chosen"), read_messages(row, "rejected"))


def _convert_messages_prompt_text(row: Row) -> tuple[Text, Text, Text]:
    """Completions that open with the assistant follow the prompt column; whole conversations include it already."""
    prompt = read_string(row, "prompt")
    chosen, rejected = read_messages(row, "chosen"), read_messages(row, "rejected")
    if chosen[0]["role"] == "assistant" and rejected[0]["role"] == "assistant":
        return [{"role": "user", "content": prompt}], chosen, rejected
    return split_messages(chosen, rejected)


_CONVERTERS = {
    "text": _convert_text,
    "text-implicit-prompt": _convert_text_implicit,
    "hh-transcript": _convert_transcript,
    "messages": _convert_messages,
    "messages-implicit-prompt": _convert_messages_implicit,
    "messages-prompt-text": _convert_messages_prompt_text,
}
FORMATS = tuple(_CONVERTERS)
