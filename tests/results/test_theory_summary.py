from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_frames import make_theory_frame

from dpotool.results.theory_summary import NOT_FINITE, summarize_theory


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


def test_four_pairs_by_hand():
    summary = summarize_theory(four_pairs(), [0.6, 0.9], n_excluded={"does not fit": 2})

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


def test_the_papers_gaps_at_the_reference_are_one_minus_f_times_u_and_v():
    summary = summarize_theory(four_pairs(), [0.6, 1.0, 1.05])

    gaps = summary["paper_gaps"]
    assert gaps["0.6"]["g1"]["mean"] == pytest.approx(0.4 * 5.5 / 4)
    assert gaps["0.6"]["g2"]["mean"] == pytest.approx(0.4 * -2.5)
    assert gaps["1"]["g1"] == {"mean": 0.0, "ci_low": 0.0, "ci_high": 0.0}
    assert gaps["1.05"]["g2"]["mean"] == pytest.approx(0.05 * 2.5)
    assert gaps["0.6"]["g1"]["ci_low"] < gaps["0.6"]["g1"]["mean"] < gaps["0.6"]["g1"]["ci_high"]


def test_away_from_the_reference_u_moves_with_f():
    """a = 1, b = 3, gamma = 2, f = 0.5, <W,L> = 2: u = 2 s(2 (0.5*3 - 1)) * 2 = 4 s(1) = 2.924; times 0.5."""
    frame = four_pairs().iloc[:1].assign(chosen_logratios=1.0, rejected_logratios=3.0)

    gap = summarize_theory(frame, [0.5], gamma=2.0)["paper_gaps"]["0.5"]["g1"]["mean"]

    assert gap == pytest.approx(0.5 * 4 / (1 + np.exp(-1)))


def test_pairs_whose_products_are_not_finite_are_counted():
    frame = make_theory_frame(20)
    frame.loc[2, "v"] = np.nan

    summary = summarize_theory(frame, n_excluded={"does not fit": 1})

    assert (summary["n"], summary["n_excluded"]) == (19, {"does not fit": 1, NOT_FINITE: 1})


def test_an_empty_table_has_nan_and_no_cases():
    summary = summarize_theory(make_theory_frame(3).iloc[:0], [0.9])

    assert summary["n"] == 0
    assert np.isnan(summary["u"]["mean"])
    assert summary["entanglement"] == {}
