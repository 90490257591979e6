from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from synthetic_frames import make_score_frame

from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.verdict import MISSING, find_missing, judge_displacement


def make_frame(
    n: int = 200, *, chosen: float, rejected: float, tokens: int = 20, noise: float = 0.5, right: float = 1.0
) -> pd.DataFrame:
    """Pairs whose chosen and rejected completions change by so many nats; `right` of them are ranked right."""
    rng = np.random.default_rng(0)
    frame = make_score_frame(n)
    frame["chosen_tokens"] = frame["rejected_tokens"] = tokens
    frame["chosen_logps"] = frame["ref_chosen_logps"] + chosen + rng.normal(0, noise, n)
    frame["rejected_logps"] = frame["ref_rejected_logps"] + rejected + rng.normal(0, noise, n)
    margins = (frame["chosen_logps"] - frame["ref_chosen_logps"]) - (
        frame["rejected_logps"] - frame["ref_rejected_logps"]
    )
    is_right = np.arange(n) < right * n
    frame["reward_margins"] = 0.1 * np.where(is_right, margins.abs(), -margins.abs())
    return frame


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"chosen": 1.0, "rejected": -2.0}, "none"),
        ({"chosen": 0.0, "rejected": -2.0}, "none"),
        ({"chosen": -1.0, "rejected": -4.0}, "benign"),
        ({"chosen": -6.0, "rejected": -9.0}, "harmful"),
        ({"chosen": -1.0, "rejected": -0.2}, "harmful"),
        ({"chosen": -1.0, "rejected": -4.0, "right": 0.2}, "harmful"),
        ({"chosen": -1.0, "rejected": -4.0, "right": 0.5}, "unclear"),
        ({"chosen": 0.0, "rejected": -9.0, "noise": 50.0}, "unclear"),
    ],
)
def test_the_criteria_of_the_page(settings, kind):
    """Over 20 tokens, -1 nat keeps exp(-1/20) = 95 % of a token's probability and -6 nats keeps 74 %."""
    assert judge_displacement(ScoredRun(make_frame(**settings))).kind == kind


def test_the_numbers_behind_it_by_hand():
    frame = make_frame(2, chosen=-1.0, rejected=-3.0, noise=0.0, tokens=10)

    verdict = judge_displacement(ScoredRun(frame))

    evidence = verdict.evidence
    assert evidence["chosen_displacement"].value == pytest.approx(-1.0)
    assert evidence["rejected_minus_chosen_change"].value == pytest.approx(-2.0)
    assert evidence["chosen_probability_kept"].value == pytest.approx(math.exp(-0.1))
    assert evidence["chosen_displaced_share"].value == 1.0


def test_the_statement_holds_its_numbers_and_says_what_to_do():
    verdict = judge_displacement(ScoredRun(make_frame(chosen=-6.0, rejected=-9.0)))

    assert verdict.statement.startswith("Harmful displacement: log pi(chosen) changed by -5.99 [")
    assert "chosen tokens lose more than 10 % of their probability (74." in verdict.statement
    assert "ranked right" not in verdict.statement, "a criterion that is met does not stand among those that fail"
    assert "dpotool sweep" in verdict.next


def test_few_pairs_are_called_few():
    assert "With only 12 pairs" in judge_displacement(ScoredRun(make_frame(12, chosen=-1, rejected=-4))).statement
    assert "few" not in judge_displacement(ScoredRun(make_frame(50, chosen=-1, rejected=-4))).statement


def test_without_a_reference_or_pairs_there_is_no_verdict():
    assert judge_displacement(ScoredRun(make_score_frame(20, has_reference=False))) is None
    assert judge_displacement(ScoredRun(make_score_frame(0, n_excluded=3))) is None


def test_one_pair_settles_nothing():
    verdict = judge_displacement(ScoredRun(make_frame(1, chosen=-1, rejected=-4)))

    assert verdict.kind == "unclear"
    assert "log pi(chosen) changed by -0.94 nats on average" in verdict.statement
    assert "nan" not in verdict.statement


def test_pairs_of_one_prompt_count_once():
    """Twenty prompts, each ten times over: the interval is that of twenty values, not of two hundred."""
    frame = make_frame(200, chosen=-1, rejected=-4)
    frame[["chosen_logps", "ref_chosen_logps"]] = (
        frame[["chosen_logps", "ref_chosen_logps"]].iloc[np.arange(200) // 10 * 10].to_numpy()
    )
    apart = judge_displacement(ScoredRun(frame)).evidence["chosen_displacement"]
    frame["prompt_id"] = (np.arange(200) // 10).astype(str)

    together = judge_displacement(ScoredRun(frame)).evidence["chosen_displacement"]

    assert together.ci_high - together.ci_low > 2 * (apart.ci_high - apart.ci_low)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, None),
        ({"status": "does not fit"}, "scored pairs"),
        ({"chosen_logps": np.nan, "rejected_logps": np.nan}, "log-likelihoods"),
        ({"ref_chosen_logps": np.nan, "ref_rejected_logps": np.nan}, "reference"),
        ({"chosen_tokens": np.nan}, "lengths"),
    ],
)
def test_what_a_verdict_lacks_has_a_name(changes, missing):
    frame = make_score_frame(20).assign(**changes)

    assert find_missing(ScoredRun(frame)) == missing
    assert (judge_displacement(ScoredRun(frame)) is None) == (missing is not None)
    assert missing is None or missing in MISSING


def test_none_does_not_hide_a_lost_ranking():
    verdict = judge_displacement(ScoredRun(make_frame(chosen=1.0, rejected=-2.0, right=0.1)))

    assert verdict.kind == "none"
    assert "But fewer than half of the pairs are ranked right (10.0 % [" in verdict.statement
    assert verdict.next.startswith("The problem is the ranking, not displacement.")


@pytest.mark.parametrize(("largest", "kind"), [(0.001, "none"), (0.3, "unclear")])
def test_a_change_within_what_rounding_does_is_unclear(largest, kind):
    """The mean change is about +0.26 nats; two scorings of one pair differ by up to 0.3 nats in either model."""
    noise = {"logps": {"largest": largest, "typical": largest}, "ref_logps": None}
    verdict = judge_displacement(ScoredRun(make_frame(chosen=0.26, rejected=-2.0), noise=noise))

    assert verdict.kind == kind
    assert ("No larger than rounding error" in verdict.statement) == (kind == "unclear")
