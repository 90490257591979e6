"""One field of a row: read with the type it must have, or refused with a reason that names it."""

from __future__ import annotations

import json
import math
from typing import Any

from dpotool.data.pairs import Text

Row = dict[str, Any]


class InvalidRowError(ValueError):
    """A row that cannot be made into a pair. The message is the reason, its kind before the first colon."""


def read_string(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        raise InvalidRowError(f"{name!r} is missing")
    if not isinstance(value, str):
        raise InvalidRowError(f"{name!r} is {describe_type(value)}, expected a string")
    return _check_unicode(name, value)


def read_completion(row: Row, name: str) -> str:
    """Returns a string that must not be empty, which is checked before it is split, for a clear error."""
    value = read_string(row, name)
    if is_blank(value):
        raise InvalidRowError(f"{name!r} is empty")
    return value


def read_messages(row: Row, name: str) -> list[Any]:
    value = row.get(name)
    if value is None:
        raise InvalidRowError(f"{name!r} is missing")
    if not isinstance(value, list):
        raise InvalidRowError(f"{name!r} is {describe_type(value)}, expected a list of messages")
    if not value:
        raise InvalidRowError(f"{name!r} is empty")
    return [_read_message(name, message) for message in value]


def _read_message(name: str, message: object) -> dict[str, Any]:
    """A message as `shapes` leaves it; one that calls tools may have no content."""
    if not isinstance(message, dict):
        raise InvalidRowError(f"{name!r} holds {describe_type(message)}, expected messages with 'role' and 'content'")
    if not isinstance(message.get("role"), str):
        raise InvalidRowError(
            f"{name!r} has a message whose 'role' is {describe_type(message.get('role'))}, expected a string"
        )
    content = message.get("content")
    if not isinstance(content, str) and not message.get("tool_calls"):
        raise InvalidRowError(f"{name!r} has a message whose 'content' is {describe_type(content)}, expected a string")
    if isinstance(content, str):
        _check_unicode(name, content)
    return message


def _check_unicode(name: str, text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character: no tokenizer takes it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRowError(f"{name!r} has half a surrogate pair: at character {error.start}") from None
    return text


def is_blank(completion: Text) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    return not any(str(message.get("content", "")).strip() or message.get("tool_calls") for message in completion)


def read_score(row: Row, column: str | None) -> float | None:
    value = row.get(column) if column else None
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes a missing number as NaN
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRowError(f"{column!r} is {describe_type(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise InvalidRowError(f"{column!r} is infinite")
    return number


def read_template_kwargs(row: Row) -> dict[str, Any] | None:
    """Returns what TRL passes to the chat template for a row: its `tools` (also as JSON) and `chat_template_kwargs`."""
    tools, kwargs = row.get("tools"), row.get("chat_template_kwargs")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise InvalidRowError("'tools' is no JSON list") from None
    if tools is not None and not isinstance(tools, list):
        raise InvalidRowError(f"'tools' is {describe_type(tools)}, expected a list")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise InvalidRowError(f"'chat_template_kwargs' is {describe_type(kwargs)}, expected an object")
    reserved = sorted(_RESERVED & (kwargs or {}).keys())
    if reserved:
        raise InvalidRowError(f"'chat_template_kwargs' may not set {', '.join(reserved)}")
    options = ({"tools": tools} if tools else {}) | (kwargs or {})
    return options or None


_RESERVED = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_dict",
    "return_tensors",
    "strftime_now",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}
"""What decides how every row is rendered is not a row's to say, its template least of all."""


def describe_type(value: object) -> str:
    """Returns a JSON value's type with its article, as error messages name it ('a string', 'missing')."""
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}
    return "missing" if value is None else names.get(type(value), f"a {type(value).__name__}")
