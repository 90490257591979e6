"""A run beside DPO scaled back and stopped early: by hand, and against a bootstrap that matches anew each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from control_runs import N, draw, make_frame, write_dpo_with_controls
from scored_runs import write_judgments, write_scored_run

from dpotool.compare.control_checks import check_run, compare_on_chord
from dpotool.compare.controls import (
    ACCURACY,
    CHOSEN,
    MARGIN,
    SCALED,
    STOPPED,
    WINS,
    ControlPoint,
    Curve,
    find_curves,
    read_columns,
    tabulate_controls,
)
from dpotool.compare.findings import find_out
from dpotool.compare.scored_run import ScoredRun
from dpotool.runs.folder import RunFolder
from dpotool.stats.paired import compare_means


def make_curve(kind: str = SCALED, **points: pd.DataFrame) -> Curve:
    """Points at 0.25, 0.5, ... of the way, the last of them the finished run."""
    runs = [ScoredRun(frame, name) for name, frame in points.items()]
    shares = [(place + 1) / len(runs) for place in range(len(runs))]
    *between, full = [ControlPoint(share, run.label, run) for share, run in zip(shares, runs, strict=True)]
    return Curve(kind, full.run, tuple(between))


def test_worked_by_hand():
    """Half of the way: -1 nat, margin 1; the whole: -4, margin 2. A run at -2 lies a third of the way between, where
    the margin is 4/3; its own is 1.5, so it is 1/6 above. All pairs are ranked right by all."""
    curve = make_curve(half=make_frame(-1.0, 1.0), full=make_frame(-4.0, 2.0))
    found = check_run(ScoredRun(make_frame(-2.0, 1.5), "run"), curve)
    assert found is not None
    assert (found.at, found.share) == (CHOSEN, pytest.approx(0.5 + 0.5 / 3))
    assert found.differences[MARGIN].difference.value == pytest.approx(1 / 6)
    assert found.differences[ACCURACY].difference.value == 0


def test_above_all_of_the_control_the_margin_is_what_both_have():
    """At margin 1.5, half-way between the two, DPO scaled back is at -2.5; the run gains 1 nat."""
    curve = make_curve(half=make_frame(-1.0, 1.0), full=make_frame(-4.0, 2.0))
    found = check_run(ScoredRun(make_frame(1.0, 1.5), "run"), curve)
    assert found is not None and found.at == MARGIN
    assert found.differences[CHOSEN].difference.value == pytest.approx(3.5)
    assert check_run(ScoredRun(make_frame(1.0, 9.0), "run"), curve) is None, "beyond it in both"


def test_between_start_and_first_point_the_start_has_that_points_ranking():
    curve = make_curve(half=make_frame(-1.0, np.where(np.arange(N) < 240, 1.0, -1.0)), full=make_frame(-4.0, 2.0))
    found = check_run(ScoredRun(make_frame(-0.1, 0.5), "run"), curve)
    assert found is not None and found.share == pytest.approx(0.05)
    assert found.differences[ACCURACY].difference.value == pytest.approx(0.2)


def test_a_curve_that_passes_twice_counts_where_it_is_better():
    """Stopped early it falls to -5 and comes back to -3: at -4 the margin is 0.8 on the way down and then 2."""
    curve = make_curve(STOPPED, early=make_frame(-5.0, 1.0), full=make_frame(-3.0, 3.0))
    found = check_run(ScoredRun(make_frame(-4.0, 2.5), "run"), curve)
    assert found is not None and found.share == pytest.approx(0.75)
    assert found.differences[MARGIN].difference.value == pytest.approx(0.5)


def test_a_point_of_the_curve_does_not_differ_from_it():
    half = draw(1, -1.0, 1.0)
    found = check_run(ScoredRun(half, "same"), make_curve(half=half, full=draw(2, -4.0, 2.0)))
    assert found is not None
    for each in found.differences.values():
        assert each.difference.value == pytest.approx(0, abs=1e-12)
        assert each.difference.ci_high == pytest.approx(0, abs=1e-12)


def test_the_interval_is_that_of_matching_anew_in_every_resample():
    """The slow truth: in each of 4,000 resamples of pairs the place on the chord is looked for again."""
    wide = np.random.default_rng(4).normal(0, 1.5, N)
    run = make_frame(-2.6 + wide, 1.9 - wide / 3 + np.random.default_rng(3).normal(0, 0.5, N))
    columns = [read_columns(ScoredRun(frame)) for frame in (draw(1, -1.0, 1.0), draw(2, -4.0, 2.0), run)]
    low, high, ours = columns
    rng = np.random.default_rng(5)

    def differ(rows: np.ndarray) -> float:
        (xl, yl), (xh, yh), (x, y) = ([each[name][rows].mean() for name in (CHOSEN, MARGIN)] for each in columns)
        return float(y - (yl + (yh - yl) * (x - xl) / (xh - xl)))

    slow = np.quantile([differ(rng.integers(0, N, N)) for _ in range(4_000)], [0.025, 0.975])
    weight = float((ours[CHOSEN].mean() - low[CHOSEN].mean()) / (high[CHOSEN].mean() - low[CHOSEN].mean()))
    fast = compare_means(compare_on_chord(ours, low, high, weight, CHOSEN, MARGIN), np.zeros(N)).difference
    assert fast.value == pytest.approx(differ(np.arange(N)))
    assert [fast.ci_low, fast.ci_high] == pytest.approx(list(slow), abs=0.06 * (slow[1] - slow[0]))
    fixed = ours[MARGIN] - ((1 - weight) * low[MARGIN] + weight * high[MARGIN])
    naive = compare_means(fixed, np.zeros(N)).difference
    assert naive.ci_high - naive.ci_low < 0.9 * (fast.ci_high - fast.ci_low), "the place does move with the pairs"


@pytest.fixture
def dpo(tmp_path: Path) -> RunFolder:
    return write_dpo_with_controls(tmp_path / "dpo")


def test_controls_are_found_in_the_runs_folder_and_are_no_runs_themselves(dpo: RunFolder):
    curves = {curve.kind: [(point.share, point.name) for point in curve.points] for curve in find_curves(_open(dpo))}
    assert curves == {
        SCALED: [(0.6, "scaled back to 0.6"), (0.8, "scaled back to 0.8")],
        STOPPED: [(0.25, "stopped at step 10")],
    }
    assert [folder.path for folder in find_out([str(dpo.path)]).folders] == [dpo.path]


def _open(run: RunFolder) -> ScoredRun:
    [table] = run.list_tables("score")
    return ScoredRun.open(table)


def test_every_run_is_weighed_and_the_control_that_does_as_well_is_named(dpo: RunFolder, tmp_path: Path):
    shift = write_scored_run(tmp_path / "shift", frame=draw(4, -2.2, 3.6), loss="shift", lambda_=0.9)
    found = find_out([str(dpo.path), str(shift.path)])
    text = found.controls.say("DPO-Shift λ=0.9")
    assert text is not None
    assert text.startswith("At the same chosen likelihood DPO-Shift λ=0.9 beats scaling back in margin by 0.")
    assert "; not in accuracy (" in text and " It beats stopping early in margin by 2." in text
    assert text in found.sentences and found.controls.say("DPO") is None
    assert found.recommendation is not None and text in found.recommendation.statement
    free = "DPO scaled back to 0.6, which needs no training, also meets the conditions and keeps the chosen"
    assert free in found.recommendation.statement
    assert f"`dpotool blend m {dpo.path} --weight 0.6 --write OUT`" in found.recommendation.statement
    told = found.to_dict()["controls"]
    assert [point["share"] for point in told["points"]] == [0.6, 0.8, 0.25]
    assert {check["control"] for check in told["checks"]} == {SCALED, STOPPED}
    adjusted = [each["p_adjusted"] for check in told["checks"] for each in check["differences"].values()]
    assert all(0 <= p <= 1 for p in adjusted)


def test_a_win_rate_is_compared_at_the_same_chosen_likelihood(tmp_path: Path):
    """DPO is at -4 nats and wins half against itself. Scaled back by half it is at -2, with 75 wins, 150 ties and 75
    losses of 300: one half too. So at the run's -3 the control wins half; the run wins 165, ties 60, loses 75: 65 %."""
    dpo = write_scored_run(tmp_path / "dpo", frame=make_frame(-4.0, 4.0), loss="dpo")
    blend = ("m", str(dpo.path), 0.5, None)
    point = write_scored_run(dpo.path / "controls" / "half", frame=make_frame(-2.0, 2.0), blend=blend)
    shift = write_scored_run(tmp_path / "shift", frame=make_frame(-3.0, 3.5), loss="shift", lambda_=0.9)
    paths = [str(dpo.path), str(shift.path)]
    write_judgments(shift, "DPO-Shift λ=0.9", ["win"] * 165 + ["tie"] * 60 + ["loss"] * 75, questions="demo-test")
    assert WINS not in find_out(paths).controls.checks[0].differences, "the control was not judged"
    told = ["tie"] * 60 + ["loss"] * 75 + ["win"] * 75 + ["tie"] * 90
    write_judgments(point, "blend", told, questions="demo-test")
    found = find_out(paths)
    [check] = found.controls.checks
    gain = check.differences[WINS]
    assert gain.difference.value == pytest.approx(0.15) and gain.difference.ci_low > 0
    naive = compare_means(*(np.repeat([1, 0.5, 0], counts) for counts in ((165, 60, 75), (0, 300, 0)))).difference
    assert gain.difference.ci_high - gain.difference.ci_low > naive.ci_high - naive.ci_low, "paired"
    text = found.controls.say("DPO-Shift λ=0.9")
    assert text is not None and " and in win rate by 15.0 points [" in text
    columns, rows = tabulate_controls(found.controls)
    assert columns[-1] == WINS and rows[0][-1].startswith("+15.0 [")
    write_judgments(shift, "DPO-Shift λ=0.9", ["win"] * 300, questions="others")
    assert WINS not in find_out(paths).controls.checks[0].differences, "answers to other questions are no pairs"


def test_a_setting_with_two_seeds_is_weighed_as_a_whole(tmp_path: Path):
    """Each seed's run beside DPO scaled back of its own seed: 0.3 and 0.5 nats of margin more, 0.4 over both."""
    paths = []
    for seed, gain in ((1, 0.3), (2, 0.5)):
        noise = np.random.default_rng(seed).normal(0, 0.3, N)
        dpo = write_scored_run(tmp_path / f"dpo{seed}", frame=make_frame(-4.0, 4.0), loss="dpo")
        blend = ("m", str(dpo.path), 0.5, None)
        write_scored_run(dpo.path / "controls" / "h", frame=make_frame(-2.0, 2.0), blend=blend, seed=seed)
        frame = make_frame(-3.0, 3.0 + gain + noise - noise.mean())
        shift = write_scored_run(tmp_path / f"shift{seed}", frame=frame, loss="shift", lambda_=0.9)
        for run in (dpo, shift):
            run.update_manifest(seed=seed)
        paths += [str(dpo.path), str(shift.path)]
    found = find_out(paths, baseline=paths[0])
    *single, pooled = found.controls.checks
    assert [check.seeds for check in single] == [(), ()] and pooled.seeds == (1, 2)
    gains = [check.differences[MARGIN].difference for check in (*single, pooled)]
    assert [each.value for each in gains] == pytest.approx([0.3, 0.5, 0.4])
    assert gains[2].ci_low < 0.3 and gains[2].ci_high > 0.5, "the seeds differ by more than the pairs do"
    assert pooled.differences[MARGIN].seed_sd == pytest.approx(0.1 * 2**0.5)
    text = found.controls.say("DPO-Shift λ=0.9", pooled=True)
    assert text is not None and text in found.sentences
    assert text.startswith("At the same chosen likelihood DPO-Shift λ=0.9 (over 2 seeds) does not beat scaling back;")


def test_without_controls_nothing_is_said(tmp_path: Path):
    runs = [write_scored_run(tmp_path / "dpo", loss="dpo"), write_scored_run(tmp_path / "b", seed=2, loss="ipo")]
    found = find_out([str(run.path) for run in runs])
    assert not found.controls.checks and not any("scaling back" in sentence for sentence in found.sentences)
