"""The rule of the recommendation on constructed tables, each with an answer that is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scored_runs import compare_frames
from synthetic_frames import make_score_frame

from dpotool.compare.eligibility import Rule
from dpotool.compare.recommendation import NO_BASELINE, NOTHING_DISPLACED, STAY, TAKE, Recommendation, recommend
from dpotool.stats.paired import compare_shares
from dpotool.stats.power import count_pairs_needed


def make_run(right: np.ndarray, *, change: float = -4.0, margin: float = 1.0) -> pd.DataFrame:
    """Pairs that are ranked right where `right` says so; the chosen change by about `change` nats, margins as given."""
    n = len(right)
    wiggle = np.random.default_rng(int(abs(change) * 100)).normal(0, 0.3, n)
    frame = make_score_frame(n)
    frame["chosen_logps"] = frame["ref_chosen_logps"] + change + wiggle
    frame["reward_margins"] = margin * np.where(right, 1.0, -0.2)
    frame["rejected_logps"] = frame["ref_rejected_logps"] + change + wiggle - frame["reward_margins"]
    return frame


def first(n_right: int, n: int) -> np.ndarray:
    """The first so many of n pairs are ranked right."""
    return np.arange(n) < n_right


def flip(right: np.ndarray, *, losses: int, wins: int) -> np.ndarray:
    """Loses so many of the pairs that are ranked right, and wins so many of the others."""
    flipped = right.copy()
    flipped[np.flatnonzero(right)[:losses]] = False
    flipped[np.flatnonzero(~right)[:wins]] = True
    return flipped


def choose(base: pd.DataFrame, rule: Rule | None = None, **others: pd.DataFrame) -> Recommendation:
    found = recommend(compare_frames({"DPO": base, **others}), rule=rule)
    assert found is not None
    return found


RIGHT = first(320, 400)
"""80 % of 400 pairs."""
DPO = make_run(RIGHT)


def test_none_qualifies_and_the_loss_and_the_pairs_it_would_take_are_said():
    """5 lost, 4 won of 60: the interval reaches far below -3 points, so 7.849 (9 / 60) / 0.03^2 = 1,309 pairs."""
    right = first(50, 60)
    found = choose(make_run(right), one=make_run(flip(right, losses=5, wins=4), change=-1))

    assert (found.kind, found.recommended, found.eligible) == (STAY, "DPO", ())
    assert found.failures == {"one": ("loss",)}
    assert found.n_needed == 1309
    assert "these 60 pairs cannot rule out that one, which comes closest, loses " in found.statement
    assert "About 1,309 pairs would be enough to rule that out, if it loses none." in found.statement


def test_one_qualifies_and_is_taken_over_the_higher_one_that_does_not():
    found = choose(
        DPO,
        near=make_run(flip(RIGHT, losses=4, wins=5), change=-3),
        far=make_run(flip(RIGHT, losses=60, wins=10), change=-1),
    )

    assert (found.kind, found.recommended, found.eligible) == (TAKE, "near", ("near",))
    assert found.failures["far"] == ("loss",)
    assert "shown to lose less than 3 points" in found.statement
    [step] = [each for each in found.neighbours if each.is_above]
    assert step.name == "far" and f"{step.cost.value:.4f}" == f"{(10 - 60 - 5 + 4) / 400:.4f}"
    assert "The next step, to far, changes the chosen answers by +2.0" in found.statement


def test_of_all_that_qualify_the_highest_likelihood_is_taken():
    changes = {"a": -3.0, "b": -1.0, "c": -2.0}
    found = choose(
        DPO, **{name: make_run(flip(RIGHT, losses=2, wins=2), change=each) for name, each in changes.items()}
    )

    assert found.recommended == "b" and set(found.eligible) == set(changes)


def test_between_equal_likelihoods_the_better_ranking_decides():
    better, worse = (make_run(flip(RIGHT, losses=2, wins=wins), change=-2) for wins in (6, 1))

    assert choose(DPO, worse=worse, better=better).recommended == "better"
    assert choose(DPO, better=better, worse=worse).recommended == "better"


def test_a_smaller_delta_admits_less():
    other = make_run(flip(RIGHT, losses=6, wins=4), change=-2)

    assert choose(DPO, Rule(delta=3.0), other=other).kind == TAKE
    assert choose(DPO, Rule(delta=1.0), other=other).kind == STAY


def test_of_five_pairs_nothing_is_taken():
    found = choose(make_run(first(5, 5)), other=make_run(first(5, 5), change=-1))

    assert found.recommended in (None, "DPO")


def test_identical_models_are_no_choice():
    found = choose(DPO, same=DPO)

    assert (found.kind, found.recommended) == (STAY, "DPO")
    assert "no run is shown to keep the chosen answers more likely" in found.statement


@pytest.mark.parametrize(
    ("base", "other", "failed"),
    [
        pytest.param(first(80, 100), flip(first(80, 100), losses=16, wins=1), "loss", id="loses 16 and wins 1"),
        pytest.param(first(35, 60), first(28, 60), "coin", id="below a coin, 28 of 60"),
        pytest.param(first(8, 8), first(6, 8), "loss", id="25 points less on 8 pairs"),
    ],
)
def test_a_run_that_ranks_worse_is_not_taken(base, other, failed):
    comparison = compare_frames({"DPO": make_run(base), "other": make_run(other, change=-1)})
    found = recommend(comparison)

    assert found is not None and found.recommended in (None, "DPO")
    assert found.kind == NO_BASELINE or failed in found.failures["other"]


def test_a_run_that_is_hardly_trained_is_not_taken():
    """It ranks every pair like DPO, with margins 400 times smaller: accuracy knows no scale."""
    found = choose(DPO, start=make_run(RIGHT, change=-0.01, margin=1 / 400))

    assert (found.kind, found.failures["start"]) == (STAY, ("margin",))
    assert "start is not shown to keep 50 % of the margin (it keeps 0.2 %)" in found.statement


def test_a_run_that_is_dominated_in_both_is_not_taken():
    found = choose(DPO, worse=make_run(flip(RIGHT, losses=40, wins=0), change=-9))

    assert (found.kind, found.recommended) == (STAY, "DPO")


def test_a_baseline_of_ties_is_no_baseline_whoever_ranks_ten_percent():
    start = make_run(first(0, 100), margin=0.0)
    found = choose(start, other=make_run(first(10, 100), change=-1))

    assert (found.kind, found.recommended) == (NO_BASELINE, None)
    assert "every margin of DPO is 0, so it equals its reference and was not trained" in found.statement


def test_a_baseline_that_ranks_like_a_coin_is_no_baseline():
    found = choose(make_run(first(55, 100)), other=make_run(first(55, 100), change=-1))

    assert found.kind == NO_BASELINE and "is not shown to rank the pairs (accuracy 55.0 % [" in found.statement


def test_where_nothing_is_displaced_nothing_is_recommended():
    found = choose(make_run(RIGHT, change=1.0), other=make_run(RIGHT, change=3.0))

    assert (found.kind, found.recommended) == (NOTHING_DISPLACED, None)
    assert "there is no displacement to undo" in found.statement


def test_a_baseline_that_is_worse_in_everything_is_called_so():
    found = choose(DPO, other=make_run(first(390, 400), change=-1, margin=2.0))

    assert found.kind == TAKE
    weak = make_run(first(160, 400), change=-8)
    statement = choose(weak, other=make_run(first(390, 400), change=-1, margin=2.0)).statement
    assert "DPO is worse than other in chosen likelihood, accuracy and margin." in statement


def test_a_run_with_fewer_pairs_than_the_baseline_is_not_taken():
    """90 % of the pairs are shared; what happened to the others nobody knows."""
    found = choose(DPO, other=make_run(RIGHT, change=-1).iloc[:360])

    assert found.failures["other"] == ("pairs",)
    assert "shares only 360 of the baseline's 400 pairs" in found.statement


def test_without_a_discordant_pair_the_interval_is_the_exact_one():
    """1 - 0.025^(1/100) = 3.6 points may hide in 100 pairs, and 0.9 in 400."""
    for n, unseen in ((100, 0.0362), (400, 0.0092)):
        found = compare_shares(first(n // 2, n), first(n // 2, n)).difference
        assert (found.value, found.ci_low, found.ci_high) == (0, pytest.approx(-unseen, abs=5e-5), -found.ci_low)


def test_how_many_pairs_would_rule_a_loss_out():
    """(1.959964 + 0.841621)^2 = 7.84888; times 0.1 over 0.03^2 that is 872.1."""
    assert count_pairs_needed(0.1, 0.03) == 873
    assert count_pairs_needed(0.0, 0.03) == 122, "1 - 0.025^(1/122) = 2.98 points, and of 121 pairs 3.002"


def test_a_blend_is_no_candidate_where_its_lambda_was_trained():
    """The blend leaves the chosen answers 0.2 nats more likely than the run of its lambda, which it approximates."""
    frames = {"DPO": DPO, "trained": make_run(RIGHT, change=-2.0), "blend": make_run(RIGHT, change=-1.8)}
    comparison = compare_frames(frames)
    for label, manifest in {
        "trained": {"kind": "train", "seed": 1, "config": {"loss": "shift", "lambda_": 0.9}},
        "blend": {"kind": "blend", "seed": 1, "config": {"loss": "blend"}, "blend": {"lambda": 0.9, "weight": 0.2}},
    }.items():
        run = next(run for run in comparison.scored if run.label == label)
        run.manifest.clear()
        run.manifest.update(manifest)
    found = recommend(comparison)
    assert found is not None and (found.recommended, found.eligible) == ("trained", ("trained",))

    comparison.scored[1].manifest["seed"] = 2
    found = recommend(comparison)
    assert found is not None and found.recommended == "blend", "that run is of another seed"
