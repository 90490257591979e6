"""One row: brought from the shapes of other tools into one that `columns` knows, and its fields read with their types.

Shapes, if their meaning is certain:

* lists of messages that went through CSV, and are the text of one (JSON, Python's or numpy's way of printing it);
* ShareGPT's `from` and `value`, its roles `human` and `gpt`, and a prompt in `conversations` or `messages`;
* one message in place of a list of one, and content in OpenAI's parts of type `text`;
* a list of messages as prompt with plain texts as answers.

What is plainly structure and cannot be read is malformed: it is never scored as if somebody had written it. A field of
another type than it must have is refused with a reason that names it.
"""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

from dpotool.data.pairs import Text

MESSAGE_COLUMNS = ("conversations", "messages")
"""Names of columns with the prompt as a list of messages, in rows without a `prompt`."""
QUESTION_COLUMNS = ("question", "instruction", "query", "input", "system", "context", "history", *MESSAGE_COLUMNS)
"""Columns that say what a prompt says; not read beside or in place of `prompt`, but never passed over in silence."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_PRINTED = re.compile(r"""^\s*"?\s*(array\()?\s*\[?\s*\{\s*\\?['"](role|content|from|value)\\?['"]\s*:""")
_BETWEEN = re.compile(r"\}\s*\n\s*\{")
_ARRAY = re.compile(r"^\s*array\((.*?)(,\s*dtype=\w+)?\)\s*$", re.DOTALL)
_FIELDS = ("prompt", "chosen", "rejected")
_DEEPEST = 64


def normalize_row(row: Row) -> Row:
    """Returns a row whose prompt and completions are strings or lists of messages.

    Raises:
        InvalidRowError: a field is the text of a list of messages, and cannot be read as one; or the row is nested
            deeper than any tool call.
    """
    row = dict(row)
    if _is_deeper_than(_DEEPEST, row):
        raise InvalidRowError("nested too deeply")
    for name in _FIELDS:
        if row.get(name) is not None:
            row[name] = _normalize_field(name, row[name])
    if row.get("prompt") is None and not (_opens_conversation(row.get("chosen")) and row.get("rejected")):
        for name in MESSAGE_COLUMNS:
            messages = _normalize_field(name, row[name]) if row.get(name) else None
            if isinstance(messages, list):
                row["prompt"] = messages
                break
    if isinstance(row.get("prompt"), list):
        for name in ("chosen", "rejected"):
            if isinstance(row.get(name), str) and row[name].strip():
                row[name] = [{"role": "assistant", "content": row[name]}]
    return row


def _is_deeper_than(depth: int, value: Any) -> bool:
    """Goes level by level, as what is nested too deeply cannot be walked by recursion."""
    level = [value]
    for _ in range(depth):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _opens_conversation(completion: Any) -> bool:
    """Tells whether a completion is a whole conversation, which has its prompt in it."""
    first = completion[0] if isinstance(completion, list) and completion else None
    return isinstance(first, dict) and first.get("role") != "assistant"


def _normalize_field(name: str, value: Any) -> Any:
    if isinstance(value, str):
        if not _PRINTED.match(value):
            return value
        value = _parse_printed(name, value)
    if isinstance(value, dict) and {"role", "from"} & value.keys():
        value = [value]
    return [_normalize_message(name, message) for message in value] if isinstance(value, list) else value


def _parse_printed(name: str, text: str) -> Any:
    """Reads a list of messages back from how JSON, Python or numpy printed it."""
    array = _ARRAY.match(text)
    text = array.group(1) if array else text
    for parse in (json.loads, ast.literal_eval, lambda text: ast.literal_eval(_BETWEEN.sub("}, {", text.strip()))):
        try:
            value = parse(text)
            value = json.loads(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    raise InvalidRowError(f"{name!r} is the text of a list of messages and cannot be read back: write it as JSON")


def _normalize_message(name: str, message: Any) -> Any:
    """A message under `role` and `content`; any other value unchanged, to be refused where messages are read."""
    if not isinstance(message, dict):
        return message
    message = strip_nulls(message)
    if "role" not in message and isinstance(message.get("from"), str) and "value" in message:
        message = {"role": message.pop("from"), "content": message.pop("value"), **message}
    role = message.get("role")
    if isinstance(role, str):
        message["role"] = _ROLES.get(role.lower(), role)
    if isinstance(message.get("content"), list):
        message["content"] = _join_parts(name, message["content"])
    return message


def _join_parts(name: str, parts: list[Any]) -> str:
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    kinds = {part.get("type", "text") if isinstance(part, dict) else "text" for part in parts} - {"text"}
    if kinds or not all(isinstance(text, str) for text in texts):
        found = ", ".join(sorted(map(str, kinds))) or ", ".join(map(describe_type, texts))
        raise InvalidRowError(f"{name!r} has content in parts that are no text: {found}")
    return "".join(texts)


def strip_nulls(value: Any) -> Any:
    """Returns a value without keys that are null, at any depth, as columnar files fill these in."""
    if isinstance(value, dict):
        return {key: strip_nulls(item) for key, item in value.items() if item is not None}
    return [strip_nulls(item) for item in value] if isinstance(value, list) else value


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
    """A message as `normalize_row` leaves it; one that calls tools may have no content."""
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
