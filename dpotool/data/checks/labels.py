"""Checks of the labels: pairs that teach nothing, pairs that contradict each other, and pairs that count twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from dpotool.data.checks.check import SCORES, Check, Found, Material, quote
from dpotool.data.checks.similar import find_similar, is_similar
from dpotool.data.pairs import PreferencePair

CLOSE = 0.05
"""Scores are nearly equal where their difference is at most this share of the range of all scores."""


def find_identical(answers: Mapping[int, tuple[Hashable, Hashable]]) -> list[int]:
    """Returns the rows whose two answers are the same: as text or, for tokenized pairs, as token ids."""
    return [row for row, (chosen, rejected) in answers.items() if chosen == rejected]


def find_repeats(pairs: Mapping[int, Hashable]) -> dict[int, int]:
    """Returns for each row that repeats an earlier one that first row; of texts or of token ids."""
    first: dict[Hashable, int] = {}
    return {row: first[key] for row, key in pairs.items() if first.setdefault(key, row) != row}


def _identical(material: Material) -> Found:
    rows = find_identical({each.pair_id: (each.chosen, each.rejected) for each in material.answers})
    return Found(dict.fromkeys(rows, ""))


def _bare(text: str) -> str:
    """A text without white space, case and punctuation; a text of nothing else is returned unchanged."""
    return "".join(filter(str.isalnum, text.casefold())) or text.strip()


def _surface_only(material: Material) -> Found:
    return Found(
        {
            each.pair_id: f"chosen {quote(each.chosen)}, rejected {quote(each.rejected)}"
            for each in material.answers
            if each.chosen != each.rejected and _bare(each.chosen) == _bare(each.rejected)
        }
    )


def _gaps(pairs: Iterable[PreferencePair]) -> dict[int, float]:
    gaps = {}
    for pair in pairs:
        assert pair.score_chosen is not None and pair.score_rejected is not None
        gaps[pair.pair_id] = pair.score_chosen - pair.score_rejected
    return gaps


def _show_scores(material: Material, rows: Iterable[int]) -> Found:
    pairs = {pair.pair_id: pair for pair in material.scored}
    return Found(
        {
            row: f"scores {pairs[row].score_chosen:g} and {pairs[row].score_rejected:g}: {material.by_id[row].show()}"
            for row in rows
        }
    )


def _equal_scores(material: Material) -> Found:
    return _show_scores(material, (row for row, gap in _gaps(material.scored).items() if gap == 0))


def _inverted_scores(material: Material) -> Found:
    return _show_scores(material, (row for row, gap in _gaps(material.scored).items() if gap < 0))


def _close_scores(material: Material) -> Found:
    scores = [score for pair in material.scored for score in (pair.score_chosen or 0, pair.score_rejected or 0)]
    limit = CLOSE * (max(scores) - min(scores))
    return _show_scores(material, (row for row, gap in _gaps(material.scored).items() if 0 < gap <= limit))


def _swapped_rows(material: Material) -> dict[int, int]:
    first = {each.key: each.pair_id for each in reversed(material.answers)}
    rows = {}
    for each in material.answers:
        other = first.get((each.prompt, each.rejected, each.chosen))
        if other is not None and each.chosen != each.rejected:
            rows[each.pair_id] = other
    return rows


def _swapped(material: Material) -> Found:
    rows = _swapped_rows(material)
    return Found(
        {row: f"as row {other} the other way round: {material.by_id[row].show()}" for row, other in rows.items()}
    )


def _both_ways(material: Material) -> Found:
    swapped, rows = _swapped_rows(material), {}
    for pairs in material.by_prompt.values():
        apart = [each for each in pairs if each.chosen != each.rejected and each.pair_id not in swapped]
        chosen = {each.chosen: each.pair_id for each in apart}
        rejected = {each.rejected: each.pair_id for each in apart}
        for each in apart:
            if each.chosen in rejected:
                rows[each.pair_id] = f"chosen here, rejected in row {rejected[each.chosen]}: {quote(each.chosen)}"
            elif each.rejected in chosen:
                rows[each.pair_id] = f"rejected here, chosen in row {chosen[each.rejected]}: {quote(each.rejected)}"
    return Found(rows)


def _duplicate(material: Material) -> Found:
    repeats = find_repeats({each.pair_id: each.key for each in material.answers})
    return Found({row: f"as row {first}: {material.by_id[row].show()}" for row, first in repeats.items()})


def _near_duplicate(material: Material) -> Found:
    repeats = find_repeats({each.pair_id: each.key for each in material.answers})
    once = [each for each in material.answers if each.pair_id not in repeats]

    def matches(place: int, other: int) -> bool:
        one, two = once[place], once[other]
        return (
            is_similar(one.chosen, two.chosen)
            and is_similar(one.rejected, two.rejected)
            and is_similar(one.prompt, two.prompt)
        )

    with material.progress.track("looking for near-duplicates", len(once)) as advance:
        texts = [f"{each.chosen}\n{each.rejected}" for each in once]
        found = find_similar(texts, matches=matches, advance=advance)
    return Found(
        {once[place].pair_id: f"like row {once[other].pair_id}: {once[place].show()}" for place, other in found.items()}
    )


CHECKS = (
    Check(
        "identical",
        "labels",
        "error",
        "chosen and rejected are the same",
        "The two likelihoods move together under any loss, so the pair teaches nothing and its margin is always a tie.",
        "Leave these pairs out.",
        _identical,
        counted_as="n_identical",
        counted_word="identical",
    ),
    Check(
        "surface-only",
        "labels",
        "warning",
        "differ in spaces, case or punctuation only",
        "Almost every token is the same in both, so the chosen answer loses what the rejected one loses.",
        "Leave these pairs out, unless the form of an answer is what you want to teach.",
        _surface_only,
    ),
    Check(
        "inverted-scores",
        "labels",
        "error",
        "the rejected answer has the higher score",
        "Score and label contradict each other; one of them is wrong.",
        "Swap chosen and rejected where the score is right, or leave these pairs out.",
        _inverted_scores,
        needs=SCORES,
    ),
    Check(
        "equal-scores",
        "labels",
        "warning",
        "both answers have the same score",
        "The data itself says that neither answer is better: the label is a coin toss.",
        "Leave these pairs out.",
        _equal_scores,
        needs=SCORES,
    ),
    Check(
        "close-scores",
        "labels",
        "note",
        "scores that are nearly equal",
        "A difference of at most a twentieth of the range of all scores is often noise in the scoring.",
        "Check whether leaving these pairs out changes anything.",
        _close_scores,
        needs=SCORES,
    ),
    Check(
        "swapped",
        "labels",
        "error",
        "the same pair also occurs with swapped labels",
        "The two rows train in opposite directions, so together they teach nothing.",
        "Find out which label is right, or leave out both rows.",
        _swapped,
    ),
    Check(
        "both-ways",
        "labels",
        "note",
        "an answer is chosen here, rejected there",
        "An answer of middle quality is pulled up in one pair and pushed down in another pair of the prompt. "
        "Pairs made "
        "of rankings of several answers are so by design.",
        "Nothing if the pairs come from rankings. Otherwise find out which label is right.",
        _both_ways,
    ),
    Check(
        "duplicate",
        "labels",
        "warning",
        "the pair repeats an earlier one",
        "It counts twice in training, and in a test set intervals become narrower than they are.",
        "Leave the repeats out.",
        _duplicate,
        counted_as="n_duplicate",
        counted_word="duplicate",
    ),
    Check(
        "near-duplicate",
        "labels",
        "note",
        "the pair nearly repeats an earlier one",
        "Prompt and both answers differ from another row's in at most a tenth of their characters.",
        "Look at some of them, and leave the repeats out if they say the same.",
        _near_duplicate,
    ),
)
