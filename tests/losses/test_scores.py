"""Scores that ODPO cannot use are refused by row, with how many more there are."""

from __future__ import annotations

import math

import pytest

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.losses.registry import get_loss
from dpotool.losses.scores import validate_scores


def pair(pair_id: int, chosen: float | None, rejected: float | None) -> TokenizedPair:
    return TokenizedPair(pair_id, (1,), (2,), (3,), chosen, rejected)


GOOD = pair(0, 8.0, 3.5)


@pytest.mark.parametrize("offset", ["log", "raw", "ratio"])
def test_good_scores_pass_until_one_pair_is_equal(offset: str):
    good = [GOOD, pair(1, 1.5, 1.0)]
    validate_scores(good, {"score_offset": offset})
    with pytest.raises(DpotoolError, match=r"^row 5: score_chosen 2 does not exceed score_rejected 2"):
        validate_scores([*good, pair(5, 2.0, 2.0)], {"score_offset": offset})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (pair(17, 3.0, 3.0), "row 17: score_chosen 3 does not exceed score_rejected 3"),
        (pair(17, 2.0, 8.5), "row 17: score_chosen 2 does not exceed score_rejected 8.5"),
        (pair(17, None, None), "row 17: the pair has no score_chosen or no score_rejected"),
        (pair(17, 4.0, None), "row 17: the pair has no score_chosen or no score_rejected"),
        (pair(17, math.nan, 1.0), "row 17: scores nan and 1 are not both finite"),
        (pair(17, math.inf, 1.0), "row 17: scores inf and 1 are not both finite"),
    ],
)
def test_the_first_bad_pair_is_named_by_row(bad: TokenizedPair, message: str):
    with pytest.raises(DpotoolError) as error:
        validate_scores([GOOD, bad], {"score_offset": "log"})
    assert str(error.value) == (
        f"{message}. odpo needs score_chosen > score_rejected in every pair: remove these pairs, or use --loss dpo"
    )


def test_more_bad_pairs_are_counted():
    with pytest.raises(DpotoolError, match=r"^row 4: score_chosen 1 does .* \(2 more pairs cannot be used either\)"):
        validate_scores([GOOD, pair(4, 1.0, 2.0), pair(6, None, 1.0), pair(9, 1.0, 1.0)], {"score_offset": "raw"})


def test_only_the_ratio_needs_positive_scores():
    zero = pair(3, 2.0, 0.0)
    validate_scores([zero], {"score_offset": "log"})
    with pytest.raises(DpotoolError, match="row 3: the 'ratio' offset needs positive scores, and score_rejected is 0"):
        validate_scores([zero], {"score_offset": "ratio"})


def test_odpo_alone_brings_a_check_of_its_pairs():
    odpo = get_loss("odpo")
    assert odpo.validate_pairs is not None
    with pytest.raises(DpotoolError, match="row 4"):
        odpo.validate_pairs([pair(4, 1.0, 2.0)], odpo.resolve_options())
    assert get_loss("dpo").validate_pairs is None
