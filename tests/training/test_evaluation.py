"""Evaluations before the first step and after the last go through the store: the same numbers, computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from training_helpers import read_weights
from transformers import Trainer

from dpotool.errors import DpotoolError
from dpotool.likelihood import pair_logps
from dpotool.likelihood.scorer import Scorer
from dpotool.measures.run import score_models
from dpotool.runs.folder import RunFolder
from dpotool.settings.scoring import ScoreConfig
from dpotool.training import preparation
from dpotool.training.trainer import N_CHECKED, PreferenceTrainer

Run = Callable[..., RunFolder]


@pytest.fixture
def n_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs of each scoring batch."""
    sizes: list[int] = []
    real = pair_logps._score_batch

    def count(model: Any, pairs: Any, *rest: Any) -> Any:
        sizes.append(len(pairs))
        return real(model, pairs, *rest)

    monkeypatch.setattr(pair_logps, "_score_batch", count)
    return sizes


def score(folder: RunFolder) -> pd.DataFrame:
    config = ScoreConfig(device="cpu", noise_floor=False)
    return score_models([str(folder.path)], config)[0].frame


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"loss": "sft"}, {"layout": "paired"}], ids=str)
def test_the_same_numbers_as_without_the_store(
    run: Run,
    changes: dict[str, Any],
    tmp_path: Path,
    n_computed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """24 training and 8 test pairs, 4 evaluations. The reference, three evaluations and the 8 pairs of
    `check_step_zero` are computed, the score is not. An SFT run has neither reference nor check: four evaluations.
    And a few pairs are looked at before weights are saved, lest they be no numbers."""
    folder = run(eval_steps=1, **changes)
    trained, n_computed[:] = sum(n_computed), []
    table = score(folder)
    scored = sum(n_computed)
    is_sft = changes.get("loss") == "sft"
    assert (trained, scored) == ((4 * 8 + N_CHECKED, 0) if is_sft else (24 + 8 + 8 + 3 * 8 + N_CHECKED, 0))

    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / "other cache"))
    build = preparation._build_trainer
    monkeypatch.setattr(preparation, "_build_trainer", lambda *args: build(*args[:-1], False))
    slow = run(eval_steps=1, output=str(tmp_path / "slow"), **changes)
    for name, weights in read_weights(folder.path).items():
        assert weights.equal(read_weights(slow.path)[name])
    pd.testing.assert_frame_equal(table, score(slow), check_exact=True)
    rows, expected = ([row for row in run_.read_metrics() if "eval_loss" in row] for run_ in (folder, slow))
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows == expected


def test_an_adapter_is_evaluated_each_time(run: Run, n_computed: list[int]) -> None:
    """Its weights are saved apart from the model's, and another fingerprint is that of the two together."""
    pytest.importorskip("peft")
    run(lora=True)
    assert sum(n_computed) == 24 + 8 + 8 + 4 * 8 + N_CHECKED


def test_sharded_weights_are_evaluated_each_time(
    run: Run, n_computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process has the whole weights to hash then. Sharding itself needs several devices, so it is only said here."""
    create, build = Trainer.create_accelerator_and_postprocess, PreferenceTrainer.__init__

    def say_sharded(trainer: Trainer) -> None:
        create(trainer)
        trainer.is_fsdp_enabled = True

    def build_and_take_it_back(trainer: PreferenceTrainer, *args: Any, **options: Any) -> None:
        build(trainer, *args, **options)
        trainer.is_fsdp_enabled = False

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", say_sharded)
    monkeypatch.setattr(PreferenceTrainer, "__init__", build_and_take_it_back)
    monkeypatch.setattr(Scorer, "renewed", lambda *_args, **_options: pytest.fail("hashed"))
    folder = run(eval_steps=1)
    assert sum(n_computed) == 24 + 8 + 8 + 4 * 8 + N_CHECKED
    with pytest.raises(DpotoolError, match="sharded weights cannot be watched"):
        run(output=str(folder.path) + "-watched", monitor_theory=True)
