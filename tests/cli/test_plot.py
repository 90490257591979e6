"""Which run `dpotool plot` draws when none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpotool.cli.config_file import read_config
from dpotool.cli.plot import find_newest
from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.settings.reading import PlotConfig
from dpotool.training.config import TrainConfig

NEEDED = {"scores": "scores", "theory": "theory", "prediction": "predictions"}
"""What a picture needs -> the folder that it lies in."""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ with an older run that has every table and newer ones that each have one kind."""
    monkeypatch.chdir(tmp_path)
    tables = {"everything": ("scores", "theory", "predictions"), "nothing": ()}
    tables |= {name: (name,) for name in ("scores", "theory", "predictions")}
    for age, (name, folders) in enumerate(tables.items()):
        run = RunFolder(Path("runs") / f"only-{name}")
        run.write_manifest(collect_manifest("train", {}) | {"created": f"2026-01-0{age + 1}"})
        for folder in folders:
            (run.path / folder).mkdir()
            (run.path / folder / "demo-test.parquet").touch()
    return tmp_path / "runs"


@pytest.mark.parametrize(("needs", "table"), NEEDED.items())
def test_the_newest_run_with_the_tables_a_picture_needs(runs: Path, needs: str, table: str) -> None:
    assert find_newest(needs) == str(Path("runs") / f"only-{table}")


@pytest.mark.parametrize(
    ("needs", "command"),
    [("theory", "`dpotool theory-gap`"), ("prediction", "`dpotool predict`"), ("scores", "`dpotool score`")],
)
def test_no_such_run_says_what_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DpotoolError, match=rf"no run with anything to draw. Run .*{command} first"):
        find_newest(needs)


def test_a_runs_data_is_a_file_and_no_name_of_a_table(tmp_path: Path) -> None:
    """`plot --config run.yaml` draws what the run has; a plain file of settings may name a table."""
    run, recipe = RunFolder(tmp_path / "run"), tmp_path / "recipe.yaml"
    trained = {"data": "pairs.jsonl", "split": "train", "eval_data": "test.jsonl", "format": "parquet", "seed": 1}
    run.write_manifest(collect_manifest("train", trained))
    recipe.write_text("data: demo\nsplit: test\n")
    others = {"train": TrainConfig, "plot": PlotConfig}
    assert read_config(run.manifest_path, PlotConfig, command="plot", others=others).keys() == {"format"}
    assert read_config(recipe, PlotConfig, command="plot", others=others) == {"data": "demo", "split": "test"}


def test_no_file_makes_a_command_run_foreign_code(tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text("beta: 0.3\ntrust_remote_code: true\n")
    notes: list[str] = []
    assert read_config(recipe, TrainConfig, note=notes.append) == {"beta": 0.3}
    assert "trust_remote_code is left out; only --trust-remote-code on the command line" in notes[0]
