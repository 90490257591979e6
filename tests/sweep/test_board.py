"""What is shown of a sweep while it runs: read from the runs' folders, as table rows and as plain lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from dpotool.cli.sweep import describe_state, draw_board, tell_news
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import write_summary
from dpotool.sweep.board import DONE, SCORING, TRAINING, WAITING, Board, CellState
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.plan import plan_cells


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def board(tmp_path: Path, clock: list[float]) -> Board:
    config = SweepConfig(lambdas="0.5,1.0", batch_size=4, epochs=2.0)
    return Board(plan_cells(config, tmp_path), clock=lambda: clock[0])


def begin(folder: Path, *rows: dict[str, float]) -> RunFolder:
    """A run of 40 pairs, which is 10 steps a pass of 4 pairs each and 20 in two, with these rows logged."""
    run = RunFolder(folder)
    run.write_manifest(collect_manifest("train", {}, data={"train": {"n_pairs": 40}}))
    for row in rows:
        run.append_metrics(row)
    return run


def test_before_anything_runs_all_wait(board: Board) -> None:
    assert board.read() == [CellState("dpo", WAITING), CellState("shift-0.5", WAITING)]
    assert board.estimate_left(board.read()) is None


def test_a_run_in_training_shows_its_newest_row_and_the_time_left(
    board: Board, tmp_path: Path, clock: list[float]
) -> None:
    """Step 4 when first seen, step 8 after 6 s: 1.5 s a step, so 12 steps are 18 s, and 20 of the other 30 s more."""
    run = begin(tmp_path / "dpo", {"step": 4, "logps/chosen": -20.0, "logps/rejected": -21.0, "rewards/margins": 0.5})
    board.enter("dpo", TRAINING)
    assert board.read()[0] == CellState("dpo", TRAINING, 4, 20, -20.0, -21.0, 0.5, None)
    run.append_metrics({"step": 8, "logps/chosen": -25.0})
    clock[0] += 6
    states = board.read()
    assert states[0] == CellState("dpo", TRAINING, 8, 20, -25.0, -21.0, 0.5, pytest.approx(18.0))
    assert board.estimate_left(states) == pytest.approx(18 + 30)
    assert board.estimate_left(states, n_jobs=2) == pytest.approx(24)


def test_a_half_written_row_is_left_for_later(board: Board, tmp_path: Path) -> None:
    run = begin(tmp_path / "dpo", {"step": 4, "logps/chosen": -20.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "logps/cho')
    board.enter("dpo", TRAINING)
    assert board.read()[0].step == 4


def test_a_run_that_is_done_shows_its_test_pairs(board: Board, tmp_path: Path) -> None:
    from scored_runs import write_scored_run

    run = write_scored_run(tmp_path / "dpo")
    run.update_manifest(data={"train": {"n_pairs": 40}})
    table = run.list_tables("score")[0]
    ends = {"ci_low": -50.0, "ci_high": -20.0}
    means = {"chosen_logps": {"mean": -30.0, **ends}, "rejected_logps": {"mean": -40.0, **ends}}
    summary = {"n": 120, "n_excluded": {}, **means}
    write_summary(table, summary)
    board.enter("dpo", DONE)
    assert board.read()[0] == CellState("dpo", DONE, 20, 20, -30.0, -40.0, None)


def test_nothing_but_a_folder_is_loading(board: Board) -> None:
    board.enter("dpo", TRAINING)
    assert describe_state(board.read()[0]) == ["dpo", "loading", "", "", "", ""]


def test_a_row_holds_numbers_and_the_time_left() -> None:
    state = CellState("dpo", TRAINING, 8, 20, -25.0, -21.123, -0.0001, 3730.4)
    assert describe_state(state) == ["dpo", "training, step 8 of 20", "-25.00", "-21.12", "0.000", "1 h 02 min"]


def test_the_table_has_a_row_per_planned_run(board: Board, tmp_path: Path) -> None:
    begin(tmp_path / "dpo", {"step": 4, "logps/chosen": -20.0})
    board.enter("dpo", TRAINING)
    screen = RichConsole(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    screen.print(draw_board(board, 1))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("0 of 2 runs done")
    assert "dpo         training, step 4 of 20" in text and "shift-0.5   waiting" in text
    assert "Run the same command again" in text


def test_plain_lines_tell_each_phase_and_quarter_once() -> None:
    told: dict[str, tuple[str, int]] = {}
    waiting = CellState("shift-0.5", WAITING)

    def tell(*state: object) -> list[str]:
        return tell_news([CellState("dpo", *state), waiting], told)  # type: ignore[arg-type]

    assert tell(TRAINING) == ["dpo (1 of 2): loading"]
    assert tell(TRAINING, 1, 20, -20.0) == []
    assert tell(TRAINING, 11, 20, -22.0, -30.0, 0.25, 65.0) == [
        "dpo (1 of 2): training, step 11 of 20; log pi(chosen) -22.00, log pi(rejected) -30.00, margin 0.250, "
        "left 1 min 05 s"
    ]
    assert tell(TRAINING, 12, 20) == []
    assert tell(SCORING, 20, 20) == ["dpo (1 of 2): scoring"]
    assert tell(SCORING, 20, 20) == []


def test_metrics_longer_than_the_window_are_read_from_their_end(board: Board, tmp_path: Path) -> None:
    rows = [{"step": step, "filler": "x" * 1000, "logps/chosen": -float(step)} for step in range(150)]
    run = begin(tmp_path / "dpo")
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    board.enter("dpo", TRAINING)
    assert (board.read()[0].step, board.read()[0].chosen_logps) == (149, -149.0)
