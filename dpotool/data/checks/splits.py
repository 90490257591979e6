"""Checks across splits: with a prompt in both train and test, the test measures memory."""

from __future__ import annotations

from dpotool.data.checks.check import OTHER_PAIRS, Check, Found, Material, quote
from dpotool.data.checks.similar import find_similar, squash
from dpotool.data.sources import write_out


def _prompts(material: Material) -> dict[str, str]:
    """Prompts of the other splits as they are compared -> the split and the row where each first occurs."""
    places: dict[str, str] = {}
    for name, data in material.others.items():
        for pair in data.pairs:
            places.setdefault(squash(write_out(pair.prompt)), f"{name}, row {pair.pair_id}")
    return places


def _shared_prompt(material: Material) -> Found:
    places = _prompts(material)
    return Found(
        {
            each.pair_id: f"as in {places[squash(each.prompt)]}: prompt {quote(each.prompt)}"
            for each in material.answers
            if squash(each.prompt) in places
        }
    )


def _similar_prompt(material: Material) -> Found:
    places = _prompts(material)
    own = [prompt for prompt in dict.fromkeys(map(squash, material.by_prompt)) if prompt not in places]
    others = list(places)
    with material.progress.track("comparing prompts with those of the other split", len(own)) as advance:
        found = find_similar(own, others, advance=advance)
    like = {own[place]: others[other] for place, other in found.items()}
    return Found(
        {
            each.pair_id: f"prompt {quote(each.prompt)}, in {places[other]} {quote(other)}"
            for each in material.answers
            if (other := like.get(squash(each.prompt))) is not None
        }
    )


CHECKS = (
    Check(
        "shared-prompt",
        "splits",
        "error",
        "the prompt is also in the other split",
        "A test on training prompts measures memory, so displacement and accuracy look better than they are.",
        "Leave these pairs out of the training data, or cut the split by prompt (--test-fraction does).",
        _shared_prompt,
        needs=OTHER_PAIRS,
    ),
    Check(
        "similar-prompt",
        "splits",
        "warning",
        "the other split has nearly the same prompt",
        "A prompt that differs in at most a tenth of its characters counts as seen, unless all follow one pattern.",
        "Look at some. Leave pairs out if the question is the same; keep them if only the pattern is.",
        _similar_prompt,
        needs=OTHER_PAIRS,
    ),
)
