"""A training log without scores: a page of what it has, and its line beside scored runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scored_runs import write_scored_run
from synthetic_frames import make_metric_rows

from dpotool.compare.findings import find_out
from dpotool.errors import DpotoolError
from dpotool.foreign.run import import_file
from dpotool.plots.scene import read_scene
from dpotool.report.logs import has_only_logs, write_log_report
from dpotool.report.page import Report, write_report
from dpotool.runs.folder import RunFolder
from dpotool.settings.reading import ImportConfig, PlotConfig, ReportConfig


def import_log(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """A TRL log: two batches of known means, an evaluation in between of another."""
    if rows is None:
        rows = [
            {"step": 1, "logps/chosen": -10.0, "logps/rejected": -12.0, "rewards/chosen": 0.0, "rewards/margins": 0.1},
            {"step": 2, "logps/chosen": -13.5, "logps/rejected": -20.0, "rewards/chosen": -0.3, "rewards/margins": 0.5},
            {"step": 2, "train_runtime": 9.0},
        ]
    folder.mkdir(parents=True)
    state = folder / "trainer_state.json"
    state.write_text(json.dumps({"log_history": rows}))
    target = folder.parent / f"{folder.name}-run"
    import_file(str(state), ImportConfig(output=str(target), beta=0.1))
    return target


def show_texts(report: Report, section: str) -> str:
    [found] = [each for each in report.page.sections if each.id == section]
    return " ".join([block.text for block in found.blocks if block.kind == "paragraph"])


def test_an_imported_log_makes_a_page_that_says_what_it_lacks(tmp_path: Path) -> None:
    run = import_log(tmp_path / "checkpoint")
    assert has_only_logs([str(run)])
    page = write_log_report([str(run)], ReportConfig(output=str(tmp_path / "r.md"))).read_text(encoding="utf-8")
    assert (
        "| checkpoint-run | training batches | 1 to 2 | -10 to -13.5 | -12 to -20 | 0 to -3 | 0.1 to 0.5 | - |" in page
    )
    assert "To score a checkpoint of checkpoint-run, run \\`dpotool score CHECKPOINT --reference START" in page
    words = (
        "means over training batches: log π(chosen) from -10.00 at step 1 to -13.50 at step 2 and log π(rejected) from"
    )
    assert f"{words} -12.00" in page
    assert (tmp_path / "r_pictures" / "trajectory.png").stat().st_size > 5000


@pytest.mark.filterwarnings("ignore:.*half-written line")
@pytest.mark.parametrize("content", ["", '{"step": 1, "lo'])
def test_a_log_in_which_nothing_stands_yet_makes_a_page_too(tmp_path: Path, content: str) -> None:
    run = import_log(tmp_path / "checkpoint")
    RunFolder(run).metrics_path.write_text(content)
    page = write_log_report([str(run)], ReportConfig(output=str(tmp_path / "r.md"))).read_text(encoding="utf-8")
    assert "| checkpoint-run | training batches | - | - | - | - | - | - |" in page
    assert "There is no figure here: " in page


@pytest.mark.parametrize(
    ("told", "refusal"),
    [
        ({"baseline": "typo"}, "--baseline: is for scores, and nothing here is scored; got typo. Leave it out, or run"),
        ({"pairs": 2}, "--pairs: is for scores"),
        ({"seed": 3}, "--seed: is for scores"),
    ],
)
def test_what_only_scores_can_be_told_is_refused(tmp_path: Path, told: dict[str, Any], refusal: str) -> None:
    run = import_log(tmp_path / "checkpoint")
    with pytest.raises(DpotoolError, match=refusal):
        write_log_report([str(run)], ReportConfig(output=str(tmp_path / "r.md"), **told))
    assert not (tmp_path / "r.md").exists()


def test_a_log_beside_scored_runs_is_drawn_and_named(tmp_path: Path) -> None:
    log = import_log(tmp_path / "trl")
    scored = write_scored_run(tmp_path / "dpo", loss="dpo")
    for row in make_metric_rows(20):
        scored.append_metrics(row)
    paths = [str(scored.path), str(log)]
    assert not has_only_logs(paths)

    report = write_report(paths, ReportConfig(output=str(tmp_path / "r.html"), pairs=0))

    [trajectory] = [block for section in report.page.sections for block in section.blocks
                    if block.kind == "picture" and block.name == "trajectory"]  # fmt: skip
    assert "DPO, means over evaluation pairs: log π(chosen) from -95.00 at step 0" in trajectory.alt
    assert "trl-run, means over training batches: log π(chosen) from -10.00 at step 1 to -13.50" in trajectory.alt
    unscored = "trl-run has no score table: it is not among the models compared."
    assert unscored in show_texts(report, "models")
    assert find_out(paths).comparison.problems == [unscored]


def test_logs_of_one_folder_name_are_told_apart(tmp_path: Path) -> None:
    paths = [str(import_log(tmp_path / name / "trl")) for name in ("a", "b")]
    scene = read_scene(paths, PlotConfig())
    assert list(scene.read_metrics()) == ["trl-run (a/trl-run)", "trl-run (b/trl-run)"]


def test_comparing_a_log_says_what_can_be_done_with_it(tmp_path: Path) -> None:
    log = import_log(tmp_path / "trl")
    remedy = r"no scores here\. It is a log that was imported: `dpotool report` and `dpotool plot trajectory` show it"
    with pytest.raises(DpotoolError, match=remedy):
        find_out([str(log)])
