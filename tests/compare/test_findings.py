"""What to do next, by the verdict on the run that is recommended."""

from __future__ import annotations

import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_score_frame

from dpotool.compare.eligibility import Rule
from dpotool.compare.findings import _advise, find_out
from dpotool.compare.recommendation import TAKE, Recommendation


@pytest.mark.parametrize(
    ("kind", "lambda_", "advice"),
    [
        ("none", 0.9, "Go on with b."),
        ("benign", 0.9, "Go on with b."),
        (None, None, "Go on with b."),
        ("unclear", 0.9, "Go on with b, and score more pairs: these do not tell whether its own displacement harms."),
        ("harmful", 0.9, "b is the better one, but harmfully displaced itself: try lambdas between 0.75 and 0.9."),
        ("harmful", 0.5, "b is the better one, but harmfully displaced itself: try lambdas below 0.5."),
        (
            "harmful",
            None,
            "b is the better one, but harmfully displaced itself: `dpotool sweep` finds what a smaller lambda of "
            "DPO-Shift gives and costs.",
        ),
    ],
)
def test_a_better_run_is_judged_by_its_own_verdict(kind, lambda_, advice):
    assert (
        _advise(Recommendation(TAKE, "", Rule(), path="b", lambda_=lambda_), kind, [1.0, 0.9, 0.75, 0.5, float("nan")])
        == advice
    )


def test_a_run_without_lengths_is_not_called_one_without_reference(tmp_path):
    frame = make_score_frame(30).assign(chosen_tokens=None, rejected_tokens=None)
    found = find_out([str(write_scored_run(tmp_path / "dpo", frame=frame, loss="dpo").path)])

    assert found.say_kind("DPO") == "no lengths"
    assert found.statement.startswith("No verdict: the table has no lengths")
    assert "reference" not in found.next_action
