from __future__ import annotations

import math
import os
import time
import warnings

import pytest
from synthetic_frames import make_score_frame

from dpotool.compare.differences import compare_runs
from dpotool.compare.runs_table import COLUMNS, METRICS, describe_run, expand_sweeps, open_runs, tabulate_runs
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.summaries import summarize_scores
from dpotool.errors import DpotoolError
from dpotool.runs.about import ScoreAbout
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import summary_path, write_summary
from dpotool.runs.tables import SCORE_SCHEMA, write_table


def make_scored_run(path, *, kind="train", data="demo", split="test", n=60, seed=1, variant="", **config) -> RunFolder:
    run = RunFolder(path)
    run.write_manifest(collect_manifest(kind, {"seed": 42, "model": "m", **config}))
    about = {"data": data, "split": split, "variant": variant, "beta": 0.1}
    table = run.table_path("score", data, split, variant=variant)
    write_table(make_score_frame(n, seed=seed, n_excluded=2), table, SCORE_SCHEMA, about)
    return run


def test_runs_become_rows_with_what_they_were_and_what_they_scored(tmp_path):
    dpo = make_scored_run(tmp_path / "a", loss="dpo", beta=0.1)
    shift = make_scored_run(tmp_path / "b", seed=2, loss="shift", lambda_=0.75, lambda_schedule="constant")

    table = tabulate_runs(open_runs([dpo, shift]))

    assert table["label"].tolist() == ["DPO", "DPO-Shift λ=0.75"]
    assert table["lambda"].tolist() == [1.0, 0.75]
    assert table[["loss", "lambda_schedule", "data", "split"]].iloc[1].tolist() == ["shift", "constant", "demo", "test"]
    assert table[["n", "n_excluded", "seed"]].iloc[0].tolist() == [60, 2, 42]
    expected = summarize_scores(ScoredRun(make_score_frame(60, seed=2, n_excluded=2), about=ScoreAbout(beta=0.1)))
    for metric in METRICS:
        interval = expected[metric]
        estimate = interval.get("mean", interval.get("value"))
        found = table.loc[1, [metric, f"{metric}_low", f"{metric}_high"]].tolist()
        assert found == pytest.approx([estimate, interval["ci_low"], interval["ci_high"]]), metric


def test_a_table_of_no_runs_has_the_columns_of_any_other(tmp_path):
    """As of a sweep that was interrupted before its first run was done."""
    some = tabulate_runs(open_runs([make_scored_run(tmp_path / "a", loss="dpo")]))
    assert list(tabulate_runs([]).columns) == list(some.columns) == list(COLUMNS)


def test_a_summary_beside_the_table_is_used_unless_it_is_of_other_values(tmp_path):
    """Whatever the times of the files, which a copy changes; one of an earlier release is not if it is older."""
    run = make_scored_run(tmp_path / "a", loss="dpo")
    table = run.table_path("score", "demo", "test")
    accuracy = {"value": 0.5, "ci_low": None, "ci_high": 1}
    write_summary(table, {"n": 7, "n_excluded": {}, "reward_accuracy": accuracy})

    assert tabulate_runs(open_runs([run]))[["n", "reward_accuracy", "reward_accuracy_high"]].iloc[0].tolist() == [
        7,
        0.5,
        1.0,
    ]
    assert math.isnan(tabulate_runs(open_runs([run])).loc[0, "reward_accuracy_low"])
    os.utime(summary_path(table), ns=(0, 0))
    assert tabulate_runs(open_runs([run])).loc[0, "n"] == 7
    table.unlink()
    write_summary(table, {"n": 7, "n_excluded": {}})
    os.utime(summary_path(table), ns=(0, 0))
    make_scored_run(tmp_path / "a", loss="dpo")
    assert tabulate_runs(open_runs([run])).loc[0, "n"] == 60
    write_summary(table, {"n": 7, "n_excluded": {}})
    make_scored_run(tmp_path / "a", loss="dpo", n=50)
    assert tabulate_runs(open_runs([run])).loc[0, "n"] == 50


@pytest.mark.parametrize(
    ("moved", "named", "beta"),
    [
        ("chosen_rewards", "chosen_rewards", 0.1),
        ("reward_margins", "reward_margins", None),
        ("chosen_logps", "chosen_rewards", 0.1),
        ("ref_rejected_logps", "rejected_rewards", 0.1),
        ("rejected_displacement", "rejected_displacement", None),
    ],
)
def test_values_that_were_moved_to_another_pair_are_told(tmp_path, moved, named, beta):
    """What is derived of a pair is compared with what it is derived from, in a table whose checksums are right."""
    frame = make_score_frame(20).assign(rejected_displacement=lambda f: f["rejected_logps"] - f["ref_rejected_logps"])
    run = make_scored_run(tmp_path / "a", loss="dpo")
    table = write_table(frame, run.table_path("score", "demo", "test"), SCORE_SCHEMA, {"beta": beta})
    assert ScoredRun.open(table).n == 20
    frame.loc[:1, moved] = frame.loc[[1, 0], moved].to_numpy()
    write_table(frame, table, SCORE_SCHEMA, {"beta": beta})
    with pytest.raises(DpotoolError, match=rf"demo-test.parquet: {named} of pair 0 does not follow from"):
        ScoredRun.open(table)


def test_the_newest_table_is_the_one_that_was_written_last(tmp_path, monkeypatch):
    """Not by the times of files, which a copy changes, nor by a clock that was set back meanwhile."""
    run = make_scored_run(tmp_path / "a", kind="score", data="first")
    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    for data, n in (("second", 50), ("third", 40)):
        make_scored_run(tmp_path / "a", kind="score", data=data, n=n)
    for age, table in enumerate(run.list_tables("score")):
        os.utime(table, ns=(age * 10**9, age * 10**9))
    assert [path.stem for path in run.list_tables("score")] == ["third-test", "second-test", "first-test"]


def test_a_half_written_summary_is_made_again_from_the_table(tmp_path):
    run = make_scored_run(tmp_path / "a", loss="dpo")
    summary_path(run.table_path("score", "demo", "test")).write_text('{"n": 7, "n_')

    assert tabulate_runs(open_runs([run])).loc[0, "n"] == 60


def test_data_and_split_choose_among_a_runs_tables(tmp_path):
    run = make_scored_run(tmp_path / "a", loss="dpo", n=60)
    make_scored_run(tmp_path / "a", loss="dpo", data="tldr", split="train", n=30)

    assert tabulate_runs(open_runs([run], data="demo")).loc[0, "n"] == 60
    assert tabulate_runs(open_runs([run], split="train")).loc[0, "n"] == 30
    with pytest.raises(DpotoolError, match=r"a: no scores of hh test here. Run `dpotool score .*a` first"):
        tabulate_runs(open_runs([run], data="hh", split="test"))


def test_the_full_table_goes_before_a_newer_part_of_it(tmp_path):
    run = make_scored_run(tmp_path / "a", loss="dpo", n=20, variant="limit-20")
    assert tabulate_runs(open_runs([run])).loc[0, "n"] == 20, "the only one there is"
    make_scored_run(tmp_path / "a", loss="dpo", n=60)
    make_scored_run(tmp_path / "a", loss="dpo", n=30, variant="limit-30")
    assert tabulate_runs(open_runs([run], data="demo")).loc[0, "n"] == 60


def test_a_model_from_elsewhere_is_called_by_its_folder(tmp_path):
    run = make_scored_run(tmp_path / "llama-dpo", kind="score")

    table = tabulate_runs(open_runs([run]))

    assert table["label"].tolist() == ["llama-dpo"]
    assert math.isnan(table.loc[0, "lambda"])


def test_runs_with_the_same_settings_are_told_apart_by_their_folders(tmp_path):
    runs = [make_scored_run(tmp_path / name, loss="dpo") for name in ("seed1", "seed2")]

    assert tabulate_runs(open_runs(runs))["label"].tolist() == ["DPO (seed1)", "DPO (seed2)"]


def test_runs_of_two_sweeps_are_told_apart_by_as_much_of_their_paths_as_it_takes(tmp_path):
    settings = [{"loss": "dpo"}, {"loss": "shift", "lambda_": 0.9}]
    runs = [
        make_scored_run(tmp_path / place / config["loss"], seed=seed, **config)
        for seed, place in enumerate(("x/a", "x/b", "y/b"), start=1)
        for config in settings
    ]

    assert tabulate_runs(open_runs(runs[:4]))["label"].tolist() == [
        "DPO (a/dpo)", "DPO-Shift λ=0.9 (a/shift)", "DPO (b/dpo)", "DPO-Shift λ=0.9 (b/shift)",
    ]  # fmt: skip
    assert tabulate_runs(open_runs(runs[::2]))["label"].tolist() == ["DPO (x/a/dpo)", "DPO (x/b/dpo)", "DPO (y/b/dpo)"]


def test_models_and_checkpoints_of_one_name_are_told_apart(tmp_path):
    models = [make_scored_run(tmp_path / place / "llama", kind="score") for place in "ab"]
    steps = [make_scored_run(tmp_path / place / "dpo" / "checkpoint-5", loss="dpo") for place in "ab"]

    assert tabulate_runs(open_runs(models))["label"].tolist() == ["llama (a/llama)", "llama (b/llama)"]
    assert tabulate_runs(open_runs(steps))["label"].tolist() == ["DPO (a/dpo/checkpoint-5)", "DPO (b/dpo/checkpoint-5)"]
    assert tabulate_runs(open_runs([models[0]] * 3))["label"].tolist() == [
        "llama (llama)",
        "llama (llama) #2",
        "llama (llama) #3",
    ]


def test_each_run_is_compared_by_its_own_numbers(tmp_path):
    """Two sweeps of one grid: no run's difference stands in another's row, and the baseline has none."""
    runs = [
        make_scored_run(tmp_path / place / loss, seed=seed, loss=loss)
        for seed, (place, loss) in enumerate([("a", "dpo"), ("a", "ipo"), ("b", "dpo"), ("b", "ipo")], start=1)
    ]

    comparison = compare_runs(open_runs(runs), n_resamples=50)

    assert set(comparison.differences) == {"IPO (a/ipo)", "DPO (b/dpo)", "IPO (b/ipo)"}
    base, *others = (run.scored["chosen_logps"].mean() for run in comparison.scored)
    shown = [each.metrics["chosen_logps"].difference.value for each in comparison.differences.values()]
    assert shown == pytest.approx([other - base for other in others])


def test_the_runs_own_evaluation_goes_before_newer_scores_of_other_data(tmp_path):
    """And a warning says what else there is; each can be asked for, also by what --data was told."""
    run = make_scored_run(tmp_path / "a", loss="dpo", n=60)
    run.update_manifest(data={"train": {}, "eval": {"name": "demo", "split": "test"}})
    told = {"data": "demo", "split": "test", "variant": "limit-20", "settings": {"data": "builtin:demo", "limit": 20}}
    table = run.table_path("score", "demo", "test", variant="limit-20")
    write_table(make_score_frame(20), table, SCORE_SCHEMA, told)
    about = {"data": "other", "split": "test", "settings": {"data": "dir/other.jsonl"}}
    write_table(make_score_frame(30), run.table_path("score", "other", "test"), SCORE_SCHEMA, about)

    with pytest.warns(
        UserWarning, match=r"showing scores of demo \[test\]; also scored on demo .*limit-20.*, other \["
    ):
        assert [each.n for each in open_runs([run])] == [60]
    for asked, n in (({"data": "other"}, 30), ({"data": "dir/other.jsonl"}, 30), ({"limit": 20}, 20)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert [each.n for each in open_runs([run], **asked)] == [n], asked
    with pytest.raises(DpotoolError, match="no scores of limited to 7 here"):
        open_runs([run], limit=7)


def test_a_run_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    make_scored_run(tmp_path / "sweep" / "dpo", loss="dpo")
    RunFolder(tmp_path / "sweep").write_manifest(collect_manifest("sweep", {}))
    other = make_scored_run(tmp_path / "other", loss="ipo")
    monkeypatch.chdir(tmp_path)

    with pytest.warns(UserWarning, match="^named more than once, counted once: sweep/dpo$"):
        found = expand_sweeps(["sweep", "other", str(tmp_path / "sweep" / "dpo")])

    assert [run.path.resolve() for run in found] == [tmp_path / "sweep", tmp_path / "sweep" / "dpo", other.path]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(expand_sweeps(["sweep", "other"])) == 3


@pytest.mark.parametrize(
    ("config", "label"),
    [
        ({"loss": "ipo"}, "IPO"),
        ({"loss": "shift", "lambda_": 1.0}, "DPO-Shift λ=1"),
        ({"loss": "shift"}, "DPO-Shift"),
        (
            {"loss": "shift", "lambda_schedule": "linear_increase", "lambda_min": 0.75, "lambda_max": 1.0},
            "DPO-Shift λ=0.75→1 ↑",
        ),
        (
            {"loss": "shift", "lambda_schedule": "linear_decrease", "lambda_min": 0.75, "lambda_max": 1.0},
            "DPO-Shift λ=1→0.75 ↓",
        ),
        ({"loss": "shift", "lambda_schedule": "linear_decrease"}, "DPO-Shift λ ↓"),
    ],
)
def test_labels_say_loss_and_lambda(config, label):
    assert describe_run(config) == label
