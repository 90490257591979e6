from __future__ import annotations

import os

import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_theory_frame

from dpotool.compare.findings import find_out
from dpotool.compare.runs_table import open_runs, tabulate_runs
from dpotool.compare.theory_check import check_theory, explain_unchecked, find_theory, select_forecast
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
