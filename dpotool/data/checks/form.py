"""Checks of language and form: what was damaged on the way into the file, and conversations out of order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise

from dpotool.data.checks.check import Check, Found, Material, quote, show_place
from dpotool.data.pairs import Message, PreferencePair

_EMPTY = " is empty"
_TAGS = (
    "a|b|blockquote|br|code|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|script|span|strong|style|sub|sup|table|td|th|tr"
    "|u|ul"
)
_HTML = re.compile(
    rf"</?(?:{_TAGS})(?:\s[^<>]{{0,200}})?/?>|&(?:amp|lt|gt|quot|apos|nbsp|#\d{{2,5}}|#x[0-9a-fA-F]{{2,4}});",
    re.IGNORECASE,
)
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_TURN = re.compile(r"(?:^|\n)[ \t]*(?:#+ *)?(Human|User|Assistant|<\|im_start\|> *\w+)[ \t]*(?::|\n)", re.IGNORECASE)
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"}
_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u202a-\u202e\u2060\ufdd0-\ufdef\ufeff\ufffd-\uffff\ue000-\uf8ff]"
)
"""Control characters, soft hyphens, zero-width and direction signs, the replacement character, private use."""


def _malformed(material: Material) -> Found:
    return Found({row: reason for row, reason in material.data.invalid.items() if not reason.endswith(_EMPTY)})


def _empty(material: Material) -> Found:
    return Found({row: reason for row, reason in material.data.invalid.items() if reason.endswith(_EMPTY)})


def _empty_prompt(material: Material) -> Found:
    return Found({each.pair_id: each.show() for each in material.answers if not each.prompt.strip()})


def _messages(pair: PreferencePair, side: str) -> list[Message]:
    return [*pair.prompt, *getattr(pair, side)]


def _ends_elsewhere(pair: PreferencePair) -> str:
    for side in ("chosen", "rejected"):
        if pair.is_conversational:
            role = _messages(pair, side)[-1]["role"]
            if role != "assistant":
                said = quote(str(_messages(pair, side)[-1].get("content")))
                return f"the last message of {side} is of role {role!r}: {said}"
        else:
            text = str(getattr(pair, side))
            turns = list(_TURN.finditer(text))
            if turns and turns[-1].group(1).lower() in ("human", "user"):
                return f"{side} ends with a turn of the user: {show_place(text, *turns[-1].span())}"
    return ""


def _last_not_assistant(material: Material) -> Found:
    return Found({pair.pair_id: seen for pair in material.data.pairs if (seen := _ends_elsewhere(pair))})


def _mixes_roles(pair: PreferencePair) -> str:
    for side in ("chosen", "rejected"):
        if not pair.is_conversational:
            text = str(getattr(pair, side))
            if turn := _TURN.search(text):
                return f"{side} holds another turn: {show_place(text, *turn.span())}"
            continue
        roles = [message["role"] for message in _messages(pair, side)]
        if unknown := sorted(set(roles) - _ROLES):
            return f"role {unknown[0]!r} in {side}"
        if any(role in ("system", "developer") for role in roles[1:]):
            return f"a system message that is not the first, in {side}: {', '.join(roles)}"
        if any(first == second != "tool" for first, second in pairwise(roles)):
            return f"two messages of one role in a row, in {side}: {', '.join(roles)}"
        if "user" in roles[len(pair.prompt) :]:
            return f"{side} holds a message of the user: {', '.join(roles)}"
    return ""


def _mixed_roles(material: Material) -> Found:
    return Found(
        {
            pair.pair_id: seen
            for pair in material.data.pairs
            if not _ends_elsewhere(pair) and (seen := _mixes_roles(pair))
        }
    )


def _scan(material: Material, look: Callable[[str], tuple[int, int, str] | None]) -> Found:
    """Looks at prompt and answers; `look` returns where something is, and what it is called."""
    rows = {}
    for each in material.answers:
        for name, text in {"prompt": each.prompt, **each.sides}.items():
            if (place := look(text)) is not None:
                start, end, what = place
                rows[each.pair_id] = f"{what and f'{what} in '}{name}: {show_place(text, start, end)}"
                break
    return Found(rows)


def _look_for_odd(text: str) -> tuple[int, int, str] | None:
    found = _ODD.search(text)
    if found is None:
        return None
    char = found.group(0)
    return *found.span(), f"U+{ord(char):04X} {unicodedata.name(char, 'control or private character').lower()}"


def _look_for_html(text: str) -> tuple[int, int, str] | None:
    """Marks of HTML outside of code."""
    if "<" not in text and "&" not in text:
        return None
    plain = _FENCED.sub(lambda code: " " * len(code.group(0)), text)
    found = _HTML.search(plain)
    return None if found is None else (found.start(), found.end(), found.group(0))


def _look_for_mojibake(text: str) -> tuple[int, int, str] | None:
    if text.isascii():
        return None
    from ftfy.badness import BADNESS_RE

    found = BADNESS_RE.search(text)
    return None if found is None else (found.start(), found.end(), "")


CHECKS = (
    Check(
        "malformed",
        "form",
        "error",
        "rows that are not pairs",
        "A field is missing, of the wrong type or unreadable; training stops there without --skip-invalid.",
        "Correct these rows, or leave them out with --skip-invalid.",
        _malformed,
    ),
    Check(
        "empty",
        "form",
        "error",
        "an answer is empty or white space",
        "There is nothing to score. dpotool refuses such rows; other tools teach the model to say nothing.",
        "Leave these rows out.",
        _empty,
    ),
    Check(
        "empty-prompt",
        "form",
        "warning",
        "the prompt is empty",
        "The first token of the answer then depends on nothing.",
        "Check whether the prompt is in another column; otherwise leave these pairs out.",
        _empty_prompt,
    ),
    Check(
        "last-not-assistant",
        "form",
        "error",
        "the last message is not the assistant's",
        "What the user or a tool says would be scored and trained as if the model should say it.",
        "Cut the last message off, or leave these pairs out.",
        _last_not_assistant,
    ),
    Check(
        "mixed-roles",
        "form",
        "warning",
        "roles are unknown or out of order",
        "Templates treat this differently, and other speakers' turns in an answer are trained as the model's words.",
        "Bring the messages into the order user, assistant, user, assistant.",
        _mixed_roles,
    ),
    Check(
        "odd-encoding",
        "form",
        "warning",
        "control, invisible or replaced characters",
        "Something was lost or added when the text was decoded. Readers do not see it, but the model learns it.",
        "Read the source again in its correct encoding, or remove the characters.",
        lambda material: _scan(material, _look_for_odd),
    ),
    Check(
        "mojibake",
        "form",
        "warning",
        "letters decoded in the wrong encoding",
        "What was “don’t” has become “donâ€™t”: the model learns to write it so.",
        "Run ftfy.fix_text over the texts.",
        lambda material: _scan(material, _look_for_mojibake),
    ),
    Check(
        "html-residue",
        "form",
        "warning",
        "tags or entities of HTML outside of code",
        "They are left over from a web page. If one side has more of them, the model learns that difference.",
        "Remove them with an HTML parser, unless the texts are about HTML.",
        lambda material: _scan(material, _look_for_html),
    ),
)
