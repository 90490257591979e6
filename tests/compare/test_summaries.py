from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from synthetic_frames import make_score_frame

from dpotool.compare.scored_run import NOT_FINITE, ScoredRun
from dpotool.compare.summaries import summarize_scores
from dpotool.runs.about import ScoreAbout
from dpotool.runs.atomic import to_json_plain
from dpotool.runs.tables import SCORE_SCHEMA


def four_pairs() -> pd.DataFrame:
    """Margins at beta = 0.5: 0.5*((-8+10)-(-12+10)) = 2, then 0 (a tie), then 0.5*((-6+4)-(-5+4)) = -0.5."""
    frame = pd.DataFrame(
        {
            "pair_id": [0, 1, 2, 9],
            "status": ["ok", "ok", "ok", "does not fit"],
            "chosen_tokens": [4, 2, 2, None],
            "rejected_tokens": [5, 2, 3, None],
            "chosen_logps": [-8.0, -4.0, -6.0, None],
            "rejected_logps": [-12.0, -4.0, -5.0, None],
            "ref_chosen_logps": [-10.0, -4.0, -4.0, None],
            "ref_rejected_logps": [-10.0, -4.0, -4.0, None],
            "chosen_rewards": [1.0, 0.0, -1.0, None],
            "rejected_rewards": [-1.0, 0.0, -0.5, None],
            "reward_margins": [2.0, 0.0, -0.5, None],
        }
    )
    return frame.reindex(columns=SCORE_SCHEMA.names)


def make_run(frame: pd.DataFrame, beta: float = 0.1, noise: dict | None = None) -> ScoredRun:
    return ScoredRun(frame, about=ScoreAbout(beta=beta), noise=noise)


def test_three_pairs_by_hand():
    """chosen: (-8-4-6)/3 = -6; perplexity exp(18/8); displacement (2+0-2)/3 = 0, one of three displaced."""
    summary = summarize_scores(make_run(four_pairs(), 0.5), {"n_rows": 4})

    assert (summary["n"], summary["n_excluded"], summary["ties"]) == (3, {"does not fit": 1}, 1)
    assert summary["counts"] == {"n_rows": 4}
    assert summary["reward_accuracy"]["value"] == pytest.approx(1 / 3)  # the tie counts as wrong
    assert summary["chosen_logps"]["mean"] == pytest.approx(-6.0)
    assert summary["chosen_logps_median"]["value"] == -6.0
    assert summary["rejected_logps"]["mean"] == pytest.approx(-7.0)
    assert summary["reward_margins"]["mean"] == pytest.approx(0.5)
    assert summary["reward_margins_median"]["value"] == 0.0
    assert summary["chosen_perplexity"]["value"] == pytest.approx(math.exp(18 / 8))
    assert summary["rejected_perplexity"]["value"] == pytest.approx(math.exp(21 / 10))
    assert summary["ref_chosen_perplexity"]["value"] == pytest.approx(math.exp(18 / 8))
    assert summary["chosen_displacement"]["mean"] == pytest.approx(0.0)
    assert summary["chosen_displaced_share"]["value"] == pytest.approx(1 / 3)
    assert summary["rejected_displacement"]["mean"] == pytest.approx(-1.0)
    assert summary["rejected_displaced_share"]["value"] == pytest.approx(2 / 3)
    assert summary["margin_identity"]["from_means"] == pytest.approx(0.5)
    assert summary["margin_identity"]["holds"] is True


def test_margins_within_the_noise_floor_are_ties():
    """Of the margins 2, 0 and -0.5 the last two are no larger than 0.5; with a floor of 2 none is left."""
    for largest, n_ties, accuracy in ((0.5, 2, 1 / 3), (0.25, 1, 1 / 3), (2.0, 3, 0.0)):
        noise = {"n": 3, "reward_margins": {"largest": largest, "typical": 0.1}}
        summary = summarize_scores(make_run(four_pairs(), 0.5, noise))
        assert (summary["ties"], summary["n_exact_ties"]) == (n_ties, 1)
        assert summary["reward_accuracy_beyond_noise"]["value"] == pytest.approx(accuracy)
        assert summary["reward_accuracy"]["value"] == pytest.approx(1 / 3), "by sign alone"
        assert summary["noise_floor"] == noise
    unknown = summarize_scores(make_run(four_pairs(), 0.5))
    assert (unknown["ties"], unknown["n_exact_ties"]) == (1, 1)
    assert unknown["noise_floor"] is unknown["reward_accuracy_beyond_noise"] is None


def test_every_estimate_lies_inside_its_interval():
    summary = summarize_scores(make_run(make_score_frame(200, displacement=-1.0, gap=1.0)), n_resamples=2000)

    intervals = {name: value for name, value in summary.items() if isinstance(value, dict) and "ci_low" in value}
    assert len(intervals) == 9 + 5 + 3 + 4
    for name, interval in intervals.items():
        estimate = interval.get("mean", interval.get("value"))
        assert interval["ci_low"] < estimate < interval["ci_high"], name


def test_without_a_reference_what_needs_one_is_none():
    summary = summarize_scores(make_run(make_score_frame(50, has_reference=False)))

    assert summary["chosen_logps"]["mean"] < 0
    assert summary["chosen_perplexity"]["value"] > 1
    for name in ("ref_chosen_logps", "reward_margins", "reward_accuracy", "chosen_displacement", "ties"):
        assert summary[name] is None
    assert summary["ref_rejected_perplexity"] is None
    assert summary["chosen_displaced_share"] is None
    assert summary["margin_identity"] is None


def test_rewards_of_another_beta_fail_the_margin_identity():
    summary = summarize_scores(make_run(make_score_frame(50, beta=0.1), 0.2))

    assert summary["margin_identity"]["holds"] is False
    assert summary["margin_identity"]["from_means"] == pytest.approx(2 * summary["margin_identity"]["mean_margin"])


def test_a_pair_whose_likelihood_is_not_finite_is_counted_not_averaged():
    frame = make_score_frame(50, n_excluded=2)
    frame.loc[3, "chosen_logps"] = -np.inf
    frame.loc[4, "ref_rejected_logps"] = np.nan
    frame.loc[5, "reward_margins"] = np.inf

    summary = summarize_scores(make_run(frame))

    assert summary["n"] == 47
    assert summary["n_excluded"] == {"does not fit max length": 2, NOT_FINITE: 3}
    assert np.isfinite(summary["chosen_logps"]["mean"])
    assert 3 not in make_run(frame).scored.index


@pytest.mark.parametrize("column", ["chosen_logps", "rejected_logps", "reward_margins"])
def test_a_column_that_lost_its_values_is_not_taken_for_one_that_never_had_any(column):
    """A table of rewards alone has no log-likelihoods at all, and whoever knows a reference writes the margins."""
    summary = summarize_scores(make_run(make_score_frame(9).assign(**{column: np.nan})))
    assert (summary["n"], summary["n_excluded"]) == (0, {NOT_FINITE: 9})


def test_a_table_in_which_nothing_was_scored_has_nulls_and_counts():
    frame = make_score_frame(1, n_excluded=3).iloc[1:]

    summary = to_json_plain(summarize_scores(make_run(frame)))

    assert (summary["n"], summary["n_excluded"]) == (0, {"does not fit max length": 3})
    assert summary["chosen_logps"] == {"mean": None, "ci_low": None, "ci_high": None}
    assert summary["reward_accuracy"] is None


def test_a_summary_is_strict_json():
    assert (
        json.loads(json.dumps(to_json_plain(summarize_scores(make_run(make_score_frame(5)))), allow_nan=False))["n"]
        == 5
    )
