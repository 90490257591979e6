"""Scoring a sample in other company: what it picks, what it finds, and that it costs nothing twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import make_pairs
from model_families import build_family

from dpotool.cache.entries import list_entries
from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood import pair_logps
from dpotool.likelihood.noise import choose_sample, score_in_twos, summarize_noise
from dpotool.likelihood.scorer import Scorer

PAIRS = make_pairs(20)


def test_the_sample_is_small_and_follows_from_content_alone() -> None:
    assert [len(choose_sample(make_pairs(n))) for n in (3, 8, 60, 100, 1000)] == [3, 8, 8, 12, 32]
    chosen = {PAIRS[place] for place in choose_sample(PAIRS)}
    turned = PAIRS[::-1]
    assert {turned[place] for place in choose_sample(turned)} == chosen


def test_second_values_equal_the_first_up_to_rounding_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    real = Scorer.compute

    def count(scorer: Scorer, pairs: Any, **kwargs: Any) -> Any:
        batches.append(len(pairs))
        return real(scorer, pairs, **kwargs)

    scorer = Scorer(build_family("llama").float())
    first = scorer.score(PAIRS)
    monkeypatch.setattr(Scorer, "compute", count)
    again = score_in_twos(scorer, PAIRS[:7])
    assert batches == [3, 2, 2]
    differences = np.abs(again - first.stack()[:7])
    assert 0 < differences.max() < 1e-3, "float32 rounds otherwise in other batches, but not by much"
    np.testing.assert_array_equal(score_in_twos(scorer, PAIRS[:7]), again)
    assert batches == [3, 2, 2]
    (entry,) = list_entries()
    assert entry.n_pairs == 20, "a second value is no other pair"


def test_no_pair_is_alone_and_none_beside_one_of_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts are shared, short ones are not; one of five and four is left over, and a single one has itself."""
    model = build_family("llama")
    shared, paired = (
        [TokenizedPair(n, (1, *range(3, 3 + prompt + n)), (5,) * length, (6,) * length) for n in range(count)]
        for prompt, length, count in ((40, 2, 5), (1, 30, 4))
    )
    ran: list[list[TokenizedPair]] = []
    real = pair_logps._score_batch

    def note(model: Any, batch: Any, *rest: Any) -> Any:
        ran.append(sorted(batch, key=lambda pair: len(pair.prompt_ids)))
        return real(model, batch, *rest)

    monkeypatch.setattr(pair_logps, "_score_batch", note)
    mixed = [shared[0], paired[0], shared[1], paired[1], *shared[2:], *paired[2:]]
    score_in_twos(Scorer(model, fingerprint="a" * 16), mixed)
    assert ran == [shared[:3], shared[3:], paired[:2], paired[2:]]
    ran.clear()
    score_in_twos(Scorer(model, fingerprint="b" * 16), [shared[0], *paired[:2]])
    assert ran == [[shared[0]] * 2, paired[:2]]
    ran.clear()
    score_in_twos(Scorer(model, layout="paired", fingerprint="c" * 16), [shared[0], *paired[:2]])
    assert ran == [[*paired[:2], shared[0]]]


def test_two_pairs_by_hand():
    """Policy moves by (1, 0) and (0, -2), reference by (0, 0) and (0, -1), beta 0.5: margins move by 0.5 and 0.5."""
    policy = np.array([[-10.0, -20.0], [-30.0, -40.0]])
    reference = np.array([[-11.0, -21.0], [-31.0, -41.0]])
    again = policy + np.array([[1.0, 0.0], [0.0, -2.0]]), reference + np.array([[0.0, 0.0], [0.0, -1.0]])
    noise = summarize_noise((policy, reference), again, 0.5)
    assert noise["n"] == 2
    assert noise["logps"] == {"largest": 2.0, "typical": pytest.approx(0.5)}
    assert noise["ref_logps"] == {"largest": 1.0, "typical": 0.0}
    assert noise["reward_margins"] == {"largest": pytest.approx(0.5), "typical": pytest.approx(0.5)}


def test_without_a_reference_there_are_no_margins():
    policy = np.array([[-1.0, -2.0]])
    noise = summarize_noise((policy, None), (policy + 0.25, None), 0.1)
    assert noise == {"n": 1, "logps": {"largest": 0.25, "typical": 0.25}, "ref_logps": None, "reward_margins": None}


def test_values_that_are_no_numbers_say_nothing():
    policy = np.array([[-1.0, np.nan]])
    assert summarize_noise((policy, None), (policy, None), 0.1)["logps"] == {"largest": 0.0, "typical": 0.0}
    assert summarize_noise((policy * np.nan, None), (policy, None), 0.1)["logps"] is None
