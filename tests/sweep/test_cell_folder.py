"""What a sweep finds where it wants to write: its own runs it keeps, continues or makes anew, anything else stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model, write_pairs

from dpotool.errors import DpotoolError
from dpotool.estimates.sweep import plan_sweep
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.sweep.cell_folder import is_finished, make_room, read_own
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.plan import Cell, plan_cells
from dpotool.sweep.run import sweep
from dpotool.training import checkpoints
from dpotool.training.config import fill_in
from dpotool.training.objective import build_objective, record_settings


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 20)
    output = str(tmp_path / "out")
    return SweepConfig(
        model=str(model), data=str(data), test_fraction=0.3, max_steps=1, output=output, lambdas="0.5,1.0"
    )


def leave_run(cell: Cell, *, kind: str = "train", status: str = "running", **changes: Any) -> RunFolder:
    """A run as training leaves it in a cell's folder, with weights, by the cell's settings but for the changes."""
    config = replace(fill_in(cell.config), max_length=32, split="train", eval_data=cell.config.data, eval_split="test")
    run = cell.folder
    settings = record_settings(config, build_objective(config)) | changes
    run.write_manifest(collect_manifest(kind, settings) | {"status": status})
    (run.path / "model.safetensors").write_bytes(b"hours of work")
    return run


def leave_sweep(config: SweepConfig) -> RunFolder:
    run = RunFolder(Path(str(config.output)))
    run.write_manifest(collect_manifest("sweep", config.to_dict()))
    return run


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(config: SweepConfig, message: str) -> None:
    """By the sweep, with processes of its own or without, and by its dry run; nothing is changed or added."""
    before = list_files(Path(str(config.output)))
    for call in (lambda: sweep(config), lambda: sweep(replace(config, jobs=2)), lambda: plan_sweep(config)):
        with pytest.raises(DpotoolError, match=message):
            call()
        assert list_files(Path(str(config.output))) == before


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint-500/model.safetensors"])
def test_a_model_from_elsewhere_is_not_touched(config: SweepConfig, tmp_path: Path, name: str) -> None:
    weights = tmp_path / "out" / "shift-0.5" / name
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"hours of work")
    assert_refused(config, r"out/shift-0\.5: was there before the sweep, .*\. Choose another --output, or move it else")
    leave_sweep(config)
    assert_refused(config, r"shift-0\.5: was not made by this sweep; .* got something without a run\.yaml\. Choose")


@pytest.mark.parametrize("name", ["dpo", "runs.csv", "report.html"])
def test_a_file_in_the_way_is_not_replaced(config: SweepConfig, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    assert_refused(config, f"out/{name}: was there before the sweep")


def test_an_earlier_run_is_not_taken_for_a_cell(config: SweepConfig) -> None:
    leave_run(plan_cells(config, Path(str(config.output)))[0], status="finished")
    assert_refused(config, "out/dpo: was there before the sweep")


@pytest.mark.parametrize("status", ["finished", "running", "failed"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 3e-7}, r"expected learning_rate = 1e-06, got 3e-07"),
        ({"beta": 0.2}, r"expected beta = 0\.1, got 0\.2"),
        ({"limit": 5}, r"expected limit = None, got 5"),
        ({"eval_data": "hh.jsonl"}, r"expected eval_data = .*pairs\.jsonl, got hh\.jsonl"),
        ({"loss": "ipo"}, "expected loss = dpo, got ipo"),
        ({"kind": "score"}, "expected the run dpo, got one of kind score"),
    ],
)
def test_a_run_of_other_settings_is_not_taken_for_a_cell(
    config: SweepConfig, changes: dict[str, Any], message: str, status: str
) -> None:
    leave_sweep(config)
    run = leave_run(plan_cells(config, Path(str(config.output)))[0], status=status, **changes)
    assert_refused(config, f"{run.path}: was not made by this sweep; {message}. Choose another --output")


@pytest.mark.parametrize("text", ["", "kind: [", "kind: train\n"])
def test_a_run_whose_record_cannot_be_read_keeps_its_weights(config: SweepConfig, text: str) -> None:
    leave_sweep(config)
    run = leave_run(plan_cells(config, Path(str(config.output)))[0], status="finished")
    run.manifest_path.write_text(text)
    assert_refused(config, "dpo: was not made by this sweep; .* got a run.yaml that cannot be read")


def test_a_run_folder_is_no_sweep(config: SweepConfig, tmp_path: Path) -> None:
    RunFolder(tmp_path / "out").write_manifest(collect_manifest("train", config.to_dict()))
    assert_refused(config, "out: was not made by this sweep; expected a sweep, got a run of kind train")


def test_what_a_cell_of_its_own_left_is_told_apart(config: SweepConfig, tmp_path: Path) -> None:
    cell = plan_cells(config, tmp_path / "out")[1]
    assert read_own(cell) is None and not make_room(cell), "nothing there"
    cell.folder.path.mkdir(parents=True)
    assert read_own(cell) is None and not make_room(cell), "killed before its first word"
    run = leave_run(cell)
    assert not is_finished(cell) and not make_room(cell)
    assert list_files(run.path) == {}, "no checkpoint: anew"
    run = leave_run(cell, status="interrupted")
    with checkpoints.staging(run.path, 3, is_main=True) as place:
        place.mkdir()
        (place / "trainer_state.json").write_text('{"global_step": 3}')
        sums = {"pairs": {"sums": {}, "n_pairs": 0, "shift": None}, "monitor": {}}
        progress = {"loss": 0, "total_loss": 0, "last_logged": 0, "seconds": 0, "n_pairs": {}, "sums": sums}
        (place / "progress.json").write_text(json.dumps(progress))
        checkpoints.publish(place, str(run.read_manifest()["created"]))
    assert make_room(cell) and (run.path / "model.safetensors").exists()
    (run.path / "checkpoint-3" / "trainer_state.json").write_text("{")
    assert not make_room(cell) and list_files(run.path) == {}, "no whole checkpoint: anew"
    leave_run(cell, status="finished")
    assert is_finished(cell)


def test_another_run_that_came_in_between_is_not_removed(config: SweepConfig, tmp_path: Path) -> None:
    cell = plan_cells(config, tmp_path / "out")[1]
    run = leave_run(cell, beta=0.3)
    with pytest.raises(DpotoolError, match=r"expected beta = 0\.1, got 0\.3"):
        make_room(cell)
    assert (run.path / "model.safetensors").exists()


def test_every_kind_of_cell_knows_its_own_run_again(config: SweepConfig, tmp_path: Path) -> None:
    """Also in another layout, with an empty folder where a cell goes, and beside what is none of the sweep's."""
    (tmp_path / "out" / "robust").mkdir(parents=True)
    (tmp_path / "out" / "log.txt").write_text("mine")
    config = replace(config, lambdas="", schedules="linear_decrease", losses="robust", seeds=2)
    assert sweep(config).n_trained == 4
    again = replace(config, batch_tokens=512, layout="paired")
    assert sweep(again).n_trained == 0
    assert (tmp_path / "out" / "log.txt").read_text() == "mine"


def test_a_linked_folder_is_emptied_and_stays_linked(config: SweepConfig, tmp_path: Path) -> None:
    (cell, *_) = plan_cells(config, tmp_path / "out")
    elsewhere = tmp_path / "bigger-disk" / "dpo"
    elsewhere.mkdir(parents=True)
    cell.folder.path.parent.mkdir()
    cell.folder.path.symlink_to(elsewhere)
    leave_run(cell)
    assert list_files(elsewhere)
    assert not make_room(cell)
    assert cell.folder.path.resolve() == elsewhere
    assert list_files(tmp_path / "bigger-disk") == {}
