"""What a judge's reply says: a verdict or a rating, or that there is none. Nothing is guessed.

Three rules, one for each way in which prompts ask. A reply that does not follow the rule of its prompt has no verdict,
whatever one might read into it; such replies are counted and shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

NO_VERDICT = "no verdict in the reply"
CONTRADICTORY = "two verdicts in the reply"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was read from a reply."""

    choice: str | None
    """'A', 'B' or 'Tie'; None for a rating, and where there is none."""
    rating: float | None = None
    problem: str | None = None
    """Why there is none."""
    is_doubtful: bool = False
    """The reply opens with a verdict and goes on against it ("A is not correct, ...")."""


_MARKUP = r"[\s*_#>\"'“”‘’`(\[]*"
_LABEL = r"(?:(?:output|verdict|judge?ment|answer)\s*[:：]" + _MARKUP + ")?"
_CHOICE = r"(?:assistant\s+)?(A|B|tie)"
_OPENING = re.compile(rf"^{_MARKUP}{_LABEL}{_CHOICE}(?!\w|['’]s\b)(.*)", re.IGNORECASE | re.DOTALL)
_GOES_ON_AS_WORD = re.compile(r"[ \t]+(?!is\b|was\b|because\b|since\b|as\b|for\b|by\b|nor\b|[-–—(])\w")
_AGAINST = re.compile(
    r"\s*(?:is|was)\s+(?:also\s+|both\s+)?(?:not\b|incorrect|wrong)|\s*:\s*tie\b|\s*nor\b", re.IGNORECASE
)


def read_first_word(reply: str) -> Verdict:
    """Reads the verdict that a reply opens with: A, B or Tie, in markup, behind "Output:" or "Assistant", or bare.

    "A better answer would be ..." opens with an article, and a block of code with code: no verdict. Capital letters
    count for A and B alone ("a" is an article), not for Tie.
    """
    text = reply.strip()
    if text.startswith("```"):
        return Verdict(None, problem=NO_VERDICT)
    found = _OPENING.match(text)
    if found is None or found.group(1) in ("a", "b"):
        return Verdict(None, problem=NO_VERDICT)
    word, rest = found.group(1), found.group(2)
    if _GOES_ON_AS_WORD.match(rest):
        return Verdict(None, problem=NO_VERDICT)
    return Verdict("Tie" if word.lower() == "tie" else word, is_doubtful=bool(_AGAINST.match(rest)))


_BRACKETED = re.compile(r"\[\[\s*(A|B|C|Tie)\s*\]\]")


def read_brackets(reply: str) -> Verdict:
    """Reads [[A]], [[B]] or [[C]] (a tie) anywhere in the reply, as MT-Bench asks for; two different ones are none."""
    found = {"Tie" if choice in ("C", "Tie") else choice for choice in _BRACKETED.findall(reply)}
    if len(found) == 1:
        return Verdict(found.pop())
    return Verdict(None, problem=CONTRADICTORY if found else NO_VERDICT)


_RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
_LONE_RATING = re.compile(r"(?<!\[)\[(\d+(?:\.\d+)?)\](?!\])")


def read_rating(reply: str) -> Verdict:
    """Reads [[7]], or [7] where there is no other, as FastChat does; a number outside 1 to 10 is no rating."""
    found = _RATING.findall(reply) or _LONE_RATING.findall(reply)
    ratings = {float(number) for number in found}
    if len(ratings) > 1:
        return Verdict(None, problem=CONTRADICTORY)
    rating = ratings.pop() if ratings else None
    if rating is None or not 1 <= rating <= 10:
        return Verdict(None, problem=NO_VERDICT)
    return Verdict(None, rating=rating)


RULES: dict[str, Callable[[str], Verdict]] = {
    "first-word": read_first_word,
    "brackets": read_brackets,
    "rating": read_rating,
}
"""Every way to read a reply, by the name that `--verdict-rule` takes."""
