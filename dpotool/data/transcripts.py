"""Where the prompt ends in a row that has no prompt column: HH-RLHF transcripts, plain text, lists of messages.

Each function returns (prompt, chosen, rejected) such that prompt + completion is the original again, and raises
`InvalidRowError` where nothing can be split off. Departures from TRL 1.16's `extract_prompt`, which cuts strings at
the first character that differs: a transcript is cut after the last `Assistant:` both share, so that the whole last
reply is the completion even where both replies begin alike; other text is never cut inside a word.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from dpotool.data.rows import InvalidRowError

HUMAN_TURN = "\n\nHuman:"
ASSISTANT_TURN = "\n\nAssistant:"

# Scripts written without spaces between words: between two of their letters there may be a word boundary anywhere.
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR")
_APOSTROPHES = "'’"
_NUMBER_POINTS = ".,:"
_ZERO_WIDTH_JOINER = "\u200d"


def is_transcript(text: str) -> bool:
    """True for the raw HH-RLHF form, which opens with a human turn and contains an assistant turn."""
    return text.startswith(HUMAN_TURN) and ASSISTANT_TURN in text


def split_transcript(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Splits two HH-RLHF transcripts after the last assistant turn that opens within their common beginning.

    The prompt ends in 'Assistant:', each completion begins with what followed it (in HH-RLHF a space). Where the two
    part before their last turn, the completions hold the human turns in between, as TRL has them too.
    """
    start = chosen.rfind(ASSISTANT_TURN, 0, _count_shared(chosen, rejected))
    if start < 0:
        raise InvalidRowError("'chosen' and 'rejected' share no 'Assistant:' turn to end the prompt with")
    cut = start + len(ASSISTANT_TURN)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Splits two strings where they part, moved back to the last word boundary; both completions are left non-empty.

    One space before the boundary goes to the completions (' blue'), as in TRL, since that is how most vocabularies hold
    a word that follows a space.
    """
    cut = min(_count_shared(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while cut > 0 and (_is_inside_word(chosen, cut) or _is_inside_word(rejected, cut)):
        cut -= 1
    if cut > 0 and chosen[cut - 1] == " ":
        cut -= 1
    if cut <= 0:
        raise InvalidRowError(
            "'chosen' and 'rejected' share no beginning to take as the prompt, and there is no 'prompt'"
        )
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_messages(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Splits two conversations at the first message that differs; each completion has at least its last message."""
    cut = 0
    last = min(len(chosen), len(rejected)) - 1
    while cut < last and chosen[cut] == rejected[cut]:
        cut += 1
    if cut == 0:
        raise InvalidRowError("'chosen' and 'rejected' share no first message to take as the prompt")
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _count_shared(text: str, other: str) -> int:
    """Returns how many leading characters are equal, by bisection: comparing slices is far faster than characters."""
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if text[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _is_inside_word(text: str, cut: int) -> bool:
    """True if a cut before text[cut] would part a word, a number ('3.14', '1,000') or a composed character."""
    before, after = text[cut - 1], text[cut]
    if _ZERO_WIDTH_JOINER in (before, after) or _is_mark(after):
        return True
    if _is_letter(before) and _is_letter(after):
        return not (_is_unspaced(before) and _is_unspaced(after))
    if cut >= 2 and _is_letter(after):
        return _is_joined(text[cut - 2], before, after)
    if cut + 1 < len(text) and _is_letter(before):
        return _is_joined(before, after, text[cut + 1])
    return False


def _is_joined(left: str, sign: str, right: str) -> bool:
    """True for an apostrophe within a word and a point within a number."""
    if sign in _APOSTROPHES:
        return left.isalpha() and right.isalpha()
    return sign in _NUMBER_POINTS and left.isdigit() and right.isdigit()


def _is_letter(char: str) -> bool:
    return char.isalnum() or char == "_" or _is_mark(char)


def _is_mark(char: str) -> bool:
    """Combining accents, variation selectors and emoji skin tones: never at the start of a word."""
    return unicodedata.category(char).startswith("M") or "\U0001f3fb" <= char <= "\U0001f3ff"


def _is_unspaced(char: str) -> bool:
    return unicodedata.name(char, "").startswith(_UNSPACED_SCRIPTS)
