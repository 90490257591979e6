"""What to do next, by the verdict on the run that is recommended."""

from __future__ import annotations

import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_score_frame

from dpotool.compare.differences import compare_runs
from dpotool.compare.eligibility import Rule
from dpotool.compare.findings import _advise, find_out
from dpotool.compare.recommendation import TAKE, Recommendation
from dpotool.compare.runs_table import expand_sweeps, open_runs


@pytest.mark.parametrize(
    ("kind", "label", "advice"),
    [
        ("none", "DPO-Shift λ=0.9", "Go on with {}/b."),
        ("benign", "DPO-Shift λ=0.9", "Go on with {}/b."),
        (None, "IPO", "Go on with {}/d."),
        (
            "unclear",
            "DPO-Shift λ=0.9",
            "Go on with {}/b, and score more pairs: these do not show whether its displacement is harmful.",
        ),
        (
            "harmful",
            "DPO-Shift λ=0.9",
            "{0}/b is better than the baseline, but its displacement is harmful too: see what lies between "
            "lambda 0.75 and 0.9, "
            "without training: `dpotool blend {0}/b {0}/c`.",
        ),
        (
            "harmful",
            "DPO-Shift λ=0.75",
            "{}/c is better than the baseline, but its displacement is harmful too: train one with a lambda "
            "above 0 and below 0.75.",
        ),
        (
            "harmful",
            "IPO",
            "{}/d is better than the baseline, but its displacement is harmful too: `dpotool sweep` finds what "
            "a smaller lambda of "
            "DPO-Shift gives and costs.",
        ),
        ("none", "blend λ=0.8", "Save it with `dpotool blend x y --at 0.8 --write OUT`."),
    ],
)
def test_a_better_run_is_judged_by_its_own_verdict(tmp_path, kind, label, advice):
    losses = {"a": {"loss": "dpo"}, "d": {"loss": "ipo"}}
    losses |= {name: {"loss": "shift", "lambda_": value} for name, value in {"b": 0.9, "c": 0.75}.items()}
    paths = [str(write_scored_run(tmp_path / name, **config).path) for name, config in losses.items()]
    blend = write_scored_run(tmp_path / "blend", blend=("x", "y", 0.4, 0.8))
    comparison = compare_runs(open_runs(expand_sweeps([*paths, str(blend.path)])), n_resamples=20)
    path = comparison.runs.set_index("label").loc[label, "path"]
    found = Recommendation(TAKE, "", Rule(), recommended=label, path=path)
    assert _advise(comparison, found, kind) == advice.format(tmp_path)


def test_a_run_without_lengths_is_not_called_one_without_reference(tmp_path):
    frame = make_score_frame(30).assign(chosen_tokens=None, rejected_tokens=None)
    found = find_out([str(write_scored_run(tmp_path / "dpo", frame=frame, loss="dpo").path)])

    assert found.say_kind("DPO") == "no lengths"
    assert found.statement.startswith("No verdict: the table has no completion lengths")
    assert "reference" not in found.next_action
