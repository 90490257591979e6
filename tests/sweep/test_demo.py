"""The built-in model and pairs show the phenomenon by themselves, through the same commands that users run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from dpotool.runs.folder import RunFolder
from dpotool.runs.tables import read_table
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.run import sweep
from dpotool.training.demo import ensure_demo_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[pd.DataFrame]:
    """The runs table of a default sweep on a third of the pairs (20 steps), scored on half of the test pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPOTOOL_CACHE", str(cache := tmp_path_factory.mktemp("cache")))
        shutil.copytree(demo_model, cache / demo_model.name)
        output = tmp_path_factory.mktemp("demo") / "sweep"
        few = {"limit": 640, "eval_limit": 200, "eval_steps": 1000, "controls": False}
        config = SweepConfig(lambdas="0.5,0.75,1.0", **few, output=str(output), device="cpu")
        yield sweep(config).table.set_index("lambda")


def test_dpo_displaces_the_chosen_answers(runs: pd.DataFrame) -> None:
    """Mean change of log pi(chosen) on held-out pairs: below zero beyond its interval, and for most pairs."""
    dpo = runs.loc[1.0]
    assert dpo["chosen_displacement_high"] < 0
    assert dpo["chosen_displaced_share_low"] > 0.5
    assert dpo["reward_accuracy_low"] > 0.5, "displacement is no collapse: the pairs are still told apart"


def test_a_smaller_lambda_keeps_the_chosen_likelihood_higher(runs: pd.DataFrame) -> None:
    displacement = runs["chosen_displacement"]
    assert displacement[0.5] > displacement[0.75] > displacement[1.0]
    assert runs.loc[0.5, "chosen_displacement_low"] > runs.loc[1.0, "chosen_displacement_high"]


def test_and_costs_margin_and_accuracy(runs: pd.DataFrame) -> None:
    """Compared pair by pair, as both models scored the same pairs."""
    margins = {
        value: read_table(RunFolder(Path(str(runs.loc[value, "path"]))).list_tables("score")[0])["reward_margins"]
        for value in (0.5, 1.0)
    }
    difference = margins[1.0] - margins[0.5]
    assert difference.mean() > 2 * difference.std() / len(difference) ** 0.5
    assert runs.loc[0.5, "reward_accuracy"] < runs.loc[1.0, "reward_accuracy"]


def test_the_model_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpotool.training import demo

    calls: list[str] = []

    def pretend(place: Path, _progress: object) -> None:
        calls.append("trained")
        (place / "trained").mkdir()
        (place / "trained" / "config.json").write_text("{}")

    monkeypatch.setattr(demo, "_train_apart", pretend)
    assert ensure_demo_model() == ensure_demo_model()
    assert calls == ["trained"]
