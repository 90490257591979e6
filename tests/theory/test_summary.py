from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_frames import make_theory_frame

from dpotool.theory.summary import NOT_FINITE, PairGaps, summarize_theory


def four_pairs() -> pd.DataFrame:
    """At policy = reference, gamma = 1: u = <W,L>/2, v = <W,L> - |L|^2; bands [<W,L>/|L|^2, |W|^2/<W,L>]."""
    return pd.DataFrame(
        {
            "pair_id": [0, 1, 2, 3],
            "grad_inner_product": [2.0, 6.0, -1.0, 4.0],
            "chosen_grad_sq_norm": [8.0, 4.0, 4.0, 4.0],
            "rejected_grad_sq_norm": [4.0, 12.0, 1.0, 4.0],
            "grad_cosine": 0.5,
            "chosen_logratios": 0.0,
            "rejected_logratios": 0.0,
            "u": [1.0, 3.0, -0.5, 2.0],
            "v": [-2.0, -6.0, -2.0, 0.0],
            "band_low": [0.5, 0.5, 0.0, 1.0],
            "band_high": [4.0, 4 / 6, np.inf, 1.0],
            "entanglement": ["apart", "both down", "apart", "apart"],
        }
    )


def paper_gaps(*shifts: float) -> dict[float, dict[str, PairGaps]]:
    frame = four_pairs()
    return {f: {"paper": PairGaps((1 - f) * frame["u"].to_numpy(), (1 - f) * frame["v"].to_numpy())} for f in shifts}


def test_four_pairs_by_hand():
    summary = summarize_theory(four_pairs(), paper_gaps(0.6, 0.9), n_excluded={"does not fit": 2})

    assert (summary["n"], summary["n_excluded"]) == (4, {"does not fit": 2})
    assert summary["u"]["mean"] == pytest.approx(5.5 / 4)
    assert summary["v"]["mean"] == pytest.approx(-2.5)
    assert (summary["u_positive_share"]["value"], summary["u_positive_share"]["paper"]) == (0.75, 0.714)
    assert (summary["v_negative_share"]["value"], summary["v_negative_share"]["paper"]) == (0.75, 0.817)  # 0 is not < 0
    assert {case: s["n"] for case, s in summary["entanglement"].items()} == {"apart": 3, "both down": 1}
    assert summary["entanglement"]["apart"]["value"] == 0.75
    band = summary["band"]
    assert band["bounded_share"]["value"] == 0.75
    assert band["low_median"]["value"] == 0.5  # of 0.5, 0.5, 1; the unbounded one is not among them
    assert band["high_median"]["value"] == 1.0  # of 4, 2/3, 1
    assert band["centre_median"]["value"] == pytest.approx((1 + 2**0.5) / 2)  # of sqrt 2, sqrt 1/3, 2, 1
    assert {f: share["value"] for f, share in band["admissible_share"].items()} == {"0.6": 0.75, "0.9": 0.5, "1": 0.75}


def test_gaps_of_each_kind_with_intervals_and_signs():
    """Paper's g1 over four pairs: 1, 3, -0.5, 2 times 0.4; the other kind turns the sign of the second pair."""
    paper = paper_gaps(0.6)[0.6]["paper"]
    other = PairGaps(paper.chosen, paper.accuracy, signs=(np.array([1.0, -3.0, -0.5, 2.0]), paper.accuracy))
    summary = summarize_theory(four_pairs(), {0.6: {"paper": paper, "batch": other}})

    gaps = summary["gaps"]["0.6"]["paper"]
    assert gaps["g1"]["mean"] == pytest.approx(0.4 * 5.5 / 4)
    assert gaps["g2"]["mean"] == pytest.approx(0.4 * -2.5)
    assert gaps["g1"]["ci_low"] < gaps["g1"]["mean"] < gaps["g1"]["ci_high"]
    (signs,) = summary["sign_disagreements"]["0.6"].values()
    assert (signs["g1"]["n"], signs["g1"]["value"], signs["g2"]["n"]) == (1, 0.25, 0)


def test_a_mean_without_independent_values_has_no_interval():
    lone = PairGaps(np.arange(4.0), np.arange(4.0), has_intervals=False)
    summary = summarize_theory(four_pairs(), {0.6: {**paper_gaps(0.6)[0.6], "batch": lone}})
    assert summary["gaps"]["0.6"]["batch"]["g1"] == {"mean": 1.5, "ci_low": None, "ci_high": None}
    assert summary["sign_disagreements"]["0.6"] == {}


def test_pairs_whose_products_are_not_finite_are_counted():
    frame = make_theory_frame(20)
    frame.loc[2, "v"] = np.nan

    summary = summarize_theory(frame, n_excluded={"does not fit": 1})

    assert (summary["n"], summary["n_excluded"]) == (19, {"does not fit": 1, NOT_FINITE: 1})


def test_an_empty_table_has_nan_and_no_cases():
    summary = summarize_theory(make_theory_frame(3).iloc[:0])

    assert summary["n"] == 0
    assert np.isnan(summary["u"]["mean"])
    assert summary["entanglement"] == {}
