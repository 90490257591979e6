"""Training with a shift factor for each pair, from the pairs' theory table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from training_helpers import read_weights, training_rows

from dpotool.errors import DpotoolError
from dpotool.gradients.run import run_theory
from dpotool.progress import Progress
from dpotool.runs.about import read_metadata
from dpotool.runs.folder import RunFolder
from dpotool.runs.schemas import THEORY_SCHEMA
from dpotool.runs.tables import read_table, write_table
from dpotool.settings.scoring import TheoryConfig
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

Run = Callable[..., RunFolder]


@pytest.fixture
def table(settings: dict[str, Any], tmp_path: Path) -> Path:
    """The theory table of the training pairs."""
    given = {name: settings[name] for name in ("model", "data", "test_fraction")}
    config = TheoryConfig(**given, split="train", output=str(tmp_path / "theory"), pairs_only=True)
    return run_theory(config).path


def rewrite(table: Path, change: Callable[[pd.DataFrame], pd.DataFrame], **about: object) -> str:
    path = table.with_name("changed.parquet")
    write_table(change(read_table(table)), path, THEORY_SCHEMA, read_metadata(table) | about)
    return str(path)


def test_with_every_u_positive_training_is_that_of_a_fixed_lambda(run: Run, table: Path) -> None:
    positive = rewrite(table, lambda frame: frame.assign(u=frame["u"].abs() + 1))
    adaptive = run(loss="shift", lambda_schedule="adaptive", theory=positive, lambda_=0.6)
    fixed = run(loss="shift", lambda_=0.6, output=f"{adaptive.path}-fixed")
    expected = read_weights(fixed.path)
    for name, weight in read_weights(adaptive.path).items():
        assert torch.equal(weight, expected[name]), name
    for row, other in zip(adaptive.read_metrics(), fixed.read_metrics(), strict=True):
        for name in ("loss", "eval_loss", "lambda"):
            assert row.get(name) == (pytest.approx(other[name]) if name in other else None)


def test_each_pair_trains_with_its_own_factor(run: Run, table: Path) -> None:
    """Alternating signs of u: half of the pairs at 0.5, half at 1; the log says their mean."""
    signs = rewrite(table, lambda frame: frame.assign(u=np.where(frame["pair_id"] % 2, 1.0, -1.0)))
    folder = run(loss="shift", lambda_schedule="adaptive", theory=signs, lambda_=0.5)
    lambdas = [row["lambda"] for row in training_rows(folder)]
    assert np.mean(lambdas) == pytest.approx(0.75, abs=0.01)
    config = folder.read_manifest()["config"]
    assert (config["lambda_schedule"], config["adaptive_rule"]) == ("adaptive", "sign")
    assert (config["lambda_"], config["lambda_min"], config["theory"]) == (0.5, 0.5, signs)
    again = run(loss="shift", lambda_schedule="adaptive", theory=signs, lambda_=0.5, output=f"{folder.path}-again")
    both = (read_weights(one.path) for one in (folder, again))
    assert all(torch.equal(a, b) for a, b in zip(*(weights.values() for weights in both), strict=True))


def test_the_band_rule_reads_the_norms(run: Run, table: Path) -> None:
    even = rewrite(
        table,
        lambda frame: frame.assign(grad_inner_product=1.0, chosen_grad_sq_norm=64.0, rejected_grad_sq_norm=100.0),
    )
    folder = run(loss="shift", lambda_schedule="adaptive", theory=even, adaptive_rule="band", lambda_min=0.5)
    assert [row["lambda"] for row in training_rows(folder)] == pytest.approx([0.8] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theory": None}, "--lambda-schedule adaptive: a factor for each pair needs the pairs' theory table"),
        ({"lambda_max": 1.0}, "--lambda-max: a factor for each pair does not use it"),
        ({"lambda_schedule": None}, "--theory: only per-pair lambda uses it. Add --lambda-schedule adaptive"),
        ({"loss": "dpo"}, "--lambda-schedule: loss 'dpo' has no lambda"),
    ],
)
def test_settings_that_do_not_belong_together(run: Run, table: Path, changes: dict, message: str) -> None:
    with pytest.raises(DpotoolError) as error:
        run(**({"loss": "shift", "lambda_schedule": "adaptive", "theory": str(table)} | changes))
    assert str(error.value).startswith(message), str(error.value)


def test_a_table_of_other_pairs_is_refused(run: Run, table: Path) -> None:
    other = rewrite(table, lambda frame: frame, split="test")
    with pytest.raises(
        DpotoolError, match=r"of other pairs; expected .* \[train\], got .* \[test\]. Make one: dpotool"
    ):
        run(loss="shift", lambda_schedule="adaptive", theory=other)


def test_a_table_of_other_texts_under_the_same_name_is_refused(
    run: Run, table: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    text = Path(settings["data"]).read_text()
    turned = text.replace("chosen", "other").replace("rejected", "chosen").replace("other", "rejected")
    data = tmp_path / Path(settings["data"]).name
    data.write_text(turned)
    with pytest.raises(DpotoolError, match=r"of other texts for \d+ of 24 training pairs; got row \d+, for one"):
        run(data=str(data), loss="shift", lambda_schedule="adaptive", theory=str(table))


def test_a_table_of_some_parameters_is_used_with_a_warning(settings: dict[str, Any], table: Path) -> None:
    class Warnings(Progress):
        seen: list[str] = []  # noqa: RUF012 - one test, one list

        def warn(self, text: str) -> None:
            self.seen.append(text)

    part = rewrite(table, lambda frame: frame, parameters="output layer")
    train(TrainConfig(**settings, loss="shift", lambda_schedule="adaptive", theory=part), progress=Warnings())
    assert f"{part} counts only a part of what is trained: output layer" in Warnings.seen


def test_a_table_that_lacks_pairs_is_refused(run: Run, table: Path) -> None:
    few = rewrite(table, lambda frame: frame.iloc[3:])
    with pytest.raises(DpotoolError, match="no row for 3 of 24 training pairs; got none for row 0, for one"):
        run(loss="shift", lambda_schedule="adaptive", theory=few)
