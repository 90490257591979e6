from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_runs_table, make_score_frame, make_theory_frame

from dpotool.compare.findings import find_out
from dpotool.compare.runs_table import open_runs, tabulate_runs
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.theory_check import check_theory, explain_unchecked, find_theory, measure_outcomes, select_forecast
from dpotool.report.page import write_report
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import THEORY_SCHEMA, write_table
from dpotool.settings.reading import ReportConfig

START = {"model": "m", "data": "demo", "split": "train", "at_reference": True, "label": "m"}

PAPER = {"n": 8, "u": {"mean": 2.0}, "v": {"mean": -4.0}}
_CELL = {"chosen_change": {"mean": -1.0}, "accuracy": {"value": 0.6}}
FORECAST = {"advice_from": "sgd", "advice": {"sgd": {"optimizer": "sgd", "grid": {"1": _CELL, "0.9": _CELL}}}}


def write_theory(run: RunFolder, name: str = "demo", **about: object) -> str:
    path = run.table_path("theory", name, "train")
    write_table(make_theory_frame(8), path, THEORY_SCHEMA, START | about)
    write_summary(path, PAPER)
    return str(path)


@pytest.fixture
def runs(tmp_path) -> list[RunFolder]:
    return [
        write_scored_run(tmp_path / f"shift-{f}", seed=seed, loss="shift", lambda_=f)
        for seed, f in enumerate((1.0, 0.9, 0.5))
    ]


@pytest.mark.parametrize(
    ("about", "n_runs"),
    [
        ({}, 3),
        ({"model": "runs/../m"}, 3),
        ({"model": "runs/demo/dpo"}, 0),
        ({"at_reference": False}, 0),
        ({"at_reference": None}, 0),
        ({"data": "elsewhere"}, 0),
        ({"data": "trained-on"}, 1),
    ],
)
def test_a_forecast_is_of_the_start_on_known_pairs(runs, about, n_runs):
    runs[1].update_manifest(data={"train": {"name": "trained-on"}, "eval": {}})

    assert len(select_forecast(START | about, tabulate_runs(open_runs(runs)))) == n_runs


def test_a_table_of_a_trained_run_is_passed_over_however_new(runs, tmp_path):
    write_theory(runs[0], model=str(runs[0].path), at_reference=False)
    start = RunFolder(tmp_path / "start")
    table = write_theory(start)
    os.utime(table, (0, 0))

    assert str(find_theory([*runs, start], tabulate_runs(open_runs(runs)))) == table
    assert find_theory(runs, tabulate_runs(open_runs(runs))) is None


def test_without_a_forecast_nothing_was_recommended_before_training(runs):
    write_theory(runs[0], model=str(runs[0].path), at_reference=False)

    assert find_out([str(run.path) for run in runs]).theory is None


def test_the_report_draws_the_table_it_reads_from(runs, tmp_path):
    """The forecast was made on the training pairs, the scores are of the test pairs: --split names the scores."""
    table = write_theory(runs[2])
    paths = [str(run.path) for run in runs]
    report = write_report(paths, ReportConfig(output=str(tmp_path / "r.html"), pairs=0, split="test"))

    section = next(section for section in report.page.sections if section.id == "forecast")
    assert [block.kind for block in section.blocks] == ["picture", "paragraph", "paragraph", "table", "paragraph"]
    assert report.findings.theory["path"] == table


def test_a_report_says_why_no_theory_is_drawn(runs, tmp_path):
    write_theory(runs[0], model=str(runs[0].path), at_reference=False)
    paths = [str(run.path) for run in runs]
    report = write_report(paths, ReportConfig(output=str(tmp_path / "r.html"), pairs=0))

    section = next(section for section in report.page.sections if section.id == "forecast")
    assert "no theory table of the model that the runs started from, made before training" in section.blocks[0].text
    assert "picture" not in [block.kind for block in section.blocks]
    assert section.blocks[1].text == "No prediction stands beside the measurements: no theory table."


def test_a_figure_of_a_forecast_has_its_table_and_command_on_the_page(runs, tmp_path):
    """One constant lambda is too few to lay beside the forecast, which is drawn all the same."""
    start = RunFolder(tmp_path / "start")
    start.write_manifest(collect_manifest("theory", {"model": "m"}) | {"status": "finished"})
    write_theory(start)
    paths = [str(runs[0].path), str(start.path)]
    report = write_report(paths, ReportConfig(output=str(tmp_path / "r.html"), pairs=0))

    sections = {section.id: section.blocks for section in report.page.sections}
    assert [block.kind for block in sections["forecast"]] == ["picture", "paragraph", "paragraph"]
    assert sections["forecast"][2].text == (
        "No prediction stands beside the measurements: fewer than two constant λ among the runs that started from the "
        "theory table's model."
    )
    assert sections["reproduce"][-1].items[-1] == "theory: …/demo-train.parquet"
    assert [block.text for block in sections["reproduce"] if block.kind == "paragraph"][-1] == (
        "This command makes the forecast again."
    )


@pytest.mark.parametrize(
    ("which", "theory", "reason"),
    [
        ([0], PAPER, "fewer than two constant λ among"),
        ([0, 1], {}, "the theory table's summary has neither"),
        ([1, 2], FORECAST, "no run with λ = 1"),
        ([0, 2], FORECAST, "fewer than two of the runs' λ are in"),
    ],
)
def test_what_cannot_be_checked_says_why(runs, which, theory, reason):
    table = tabulate_runs(open_runs([runs[place] for place in which]))

    assert check_theory(table, theory) is None
    assert explain_unchecked(table, theory).startswith(reason)


def table_of(chosen, rejected, pair_ids=None) -> ScoredRun:
    """A scored run whose likelihoods moved by this much from the reference."""
    frame = make_score_frame(len(chosen))
    if pair_ids is not None:
        frame["pair_id"] = pair_ids
    for side, change in (("chosen", chosen), ("rejected", rejected)):
        frame[f"{side}_logps"] = frame[f"ref_{side}_logps"] + np.asarray(change, dtype=float)
    return ScoredRun(frame)


def runs_of(lambdas, *, beta=0.1, seed=0) -> pd.DataFrame:
    table = make_runs_table(tuple(lambdas))
    return table.assign(beta=beta, seed=seed, data="demo", split="test", model="m")


def test_changes_are_over_the_margin_that_dpo_gains():
    """DPO: chosen -3 on average, rejected -5, margin 2. Shift: +1 and 0: 0.5 and 0 nats for each of these 2."""
    runs = runs_of([0.5, 1.0])
    tables = {
        "DPO-Shift λ=0.5": table_of([2, 0, 1, 1], [0, 1, -1, 0]),
        "DPO": table_of([-3, -3, -2, -4], [-5, -4, -5, -6]),
    }

    found = measure_outcomes(runs, tables).set_index("label")

    assert found["chosen_change"].to_dict() == pytest.approx({"DPO-Shift λ=0.5": 0.5, "DPO": -1.5})
    assert found["rejected_change"].to_dict() == pytest.approx({"DPO-Shift λ=0.5": 0.0, "DPO": -2.5})
    assert (found["chosen_change"] - found["rejected_change"])["DPO"] == pytest.approx(1), "by definition"
    assert (found["chosen_change_low"] <= found["chosen_change"]).all()
    assert found["reward_accuracy"].tolist() == runs["reward_accuracy"].tolist()
    assert found["lambda"].tolist() == [0.5, 1.0] and found["n"].tolist() == [4, 4]


def test_only_pairs_that_both_runs_scored_count():
    runs = runs_of([0.5, 1.0])
    tables = {
        "DPO-Shift λ=0.5": table_of([1, 1, 99], [0, 0, 0], pair_ids=[10, 11, 12]),
        "DPO": table_of([50, -1, -1], [0, -3, -3], pair_ids=[9, 10, 11]),
    }

    found = measure_outcomes(runs, tables).set_index("label").loc["DPO-Shift λ=0.5"]

    assert found["n"] == 2
    assert found["chosen_change"] == pytest.approx(0.5)


def test_a_run_is_measured_by_the_dpo_run_of_its_own_beta_and_seed():
    runs = pd.concat([runs_of([0.5, 1.0]), runs_of([1.0], seed=1), runs_of([0.5], beta=0.5)], ignore_index=True)
    runs["label"] = ["shift", "dpo 0", "dpo 1", "shift of another beta"]
    runs.loc[0, "seed"] = 1
    same = table_of([1, 1, 1], [0, 0, 0])
    tables = dict.fromkeys(runs["label"], same) | {"dpo 1": table_of([0, 0, 0], [-4, -4, -4])}

    found = measure_outcomes(runs, tables).set_index("label")

    assert found.loc["shift", "chosen_change"] == pytest.approx(1 / 4)
    assert found.loc["dpo 0", "chosen_change"] == pytest.approx(1)
    assert "shift of another beta" not in found.index


def test_dpo_on_other_pairs_is_no_scale():
    runs = pd.concat([runs_of([0.5, 1.0]), runs_of([1.0]).assign(split="train")], ignore_index=True)
    runs["label"] = ["shift", "dpo", "dpo on other pairs"]
    tables = {
        "shift": table_of([1, 1, 1], [0, 0, 0]),
        "dpo": table_of([0, 0, 0], [-2, -2, -2]),
        "dpo on other pairs": table_of([0, 0, 0], [-8, -8, -8]),
    }

    for order in ([0, 1, 2], [2, 0, 1]):
        found = measure_outcomes(runs.iloc[order], tables).set_index("label")
        assert found.loc["shift", "chosen_change"] == pytest.approx(1 / 2)


def test_pairs_of_one_prompt_are_resampled_together():
    """Eight prompts of ten equal pairs each say no more than eight pairs do."""
    change = np.array([3.0, 1, 2, 4, 0, 2, 5, 1])
    many = {"DPO": table_of(np.repeat(change, 10), np.repeat(change - 2, 10))}
    for table in many.values():
        table.table["prompt_id"] = [f"p{number // 10}" for number in range(80)]
    few = {"DPO": table_of(change, change - 2)}

    wide, alone = (measure_outcomes(runs_of([1.0]), tables).iloc[0] for tables in (many, few))

    assert wide["n"] == 80 and alone["n"] == 8
    width = wide["chosen_change_high"] - wide["chosen_change_low"]
    assert width == pytest.approx(alone["chosen_change_high"] - alone["chosen_change_low"], rel=0.1)


def test_a_dpo_run_that_gained_no_margin_gives_no_scale():
    tables = {"DPO": table_of([1, -1, 1, -1], [0, 0, 0, 0])}

    assert measure_outcomes(runs_of([1.0]), tables).empty


def test_without_reference_dpo_or_runs_there_is_nothing():
    tables = {"DPO-Shift λ=0.5": table_of([1, 1], [0, 0]), "DPO": ScoredRun(make_score_frame(2, has_reference=False))}

    assert measure_outcomes(runs_of([0.5, 1.0]), tables).empty
    assert measure_outcomes(runs_of([0.5]), tables).empty
    assert measure_outcomes(pd.DataFrame(), {}).empty


def test_schedules_have_no_place_on_an_axis_of_lambda():
    runs = make_runs_table((1.0,), ("DPO-Shift λ=0.75→1 ↑",)).assign(beta=0.1, seed=0, data="d", split="s")
    table = table_of([1, 1], [0, 0])

    assert measure_outcomes(runs, dict.fromkeys(runs["label"], table))["label"].tolist() == ["DPO"]
