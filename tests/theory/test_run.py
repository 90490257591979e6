"""The theory table of a run: its reference, which parameters count, and what an interruption leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_models import save_tiny_model, write_pairs
from training_helpers import read_weights

from dpotool.errors import DpotoolError
from dpotool.results.theory_summary import summarize_theory
from dpotool.theory import run as theory_run
from dpotool.theory.config import TheoryConfig, parse_lambdas
from dpotool.theory.run import NOT_REACHED, run_theory
from dpotool.training.config import TrainConfig
from dpotool.training.run import train


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(save_tiny_model(tmp_path / "tiny")),
        "data": str(write_pairs(tmp_path / "pairs.jsonl", 6)),
        "output": str(tmp_path / "out"),
    }


def test_a_plain_model_is_its_own_reference(settings: dict[str, Any]) -> None:
    result = run_theory(TheoryConfig(**settings))
    assert (result.frame[["chosen_logratios", "rejected_logratios"]] == 0).all(axis=None)
    np.testing.assert_allclose(result.frame["u"], result.frame["grad_inner_product"] / 2)  # c = gamma / 2
    assert result.summary["at_reference"] and result.summary["n_parameters"] == 12_976
    assert pd.read_parquet(result.path)["v"].tolist() == result.frame["v"].tolist()


def test_a_run_is_seen_from_its_own_reference(settings: dict[str, Any], tmp_path: Path) -> None:
    run = train(TrainConfig(**{**settings, "output": str(tmp_path / "run"), "learning_rate": 1e-2})).folder
    result = run_theory(TheoryConfig(model=str(run.path), data=settings["data"]))
    assert (result.frame["chosen_logratios"].abs() > 1e-3).any()
    assert not result.summary["at_reference"]
    assert result.path.parent == run.path / "theory"


def test_an_sft_run_is_the_start_of_what_follows_and_its_own_reference(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    config = TrainConfig(**{**settings, "output": str(tmp_path / "sft"), "learning_rate": 1e-2}, loss="sft")
    run = train(config).folder
    result = run_theory(TheoryConfig(model=str(run.path), data=settings["data"]))
    assert result.summary["at_reference"]
    named = run_theory(TheoryConfig(model=str(run.path), data=settings["data"], reference=settings["model"]))
    assert not named.summary["at_reference"]


def test_an_adapters_gradients_are_its_own_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft (dpotool[peft])")
    config = TrainConfig(**{**settings, "output": str(tmp_path / "run")}, lora=True, lora_r=2, learning_rate=1e-2)
    run = train(config).folder
    result = run_theory(TheoryConfig(model=str(run.path), data=settings["data"]))
    assert result.summary["n_parameters"] == sum(weight.numel() for weight in read_weights(run.path).values())


def test_an_interruption_keeps_what_was_finished(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_theory(TheoryConfig(**{**settings, "output": settings["output"] + "-whole"}))
    real = theory_run.iter_gradient_products

    def interrupted(model: Any, pairs: Any) -> Iterator[Any]:
        yield from real(model, pairs[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(theory_run, "iter_gradient_products", interrupted)
    result = run_theory(TheoryConfig(**settings))
    assert result.was_interrupted
    pd.testing.assert_frame_equal(pd.read_parquet(result.path), pd.read_parquet(whole.path).head(2))
    assert result.summary["n"] == 2
    assert result.summary["n_excluded"] == {NOT_REACHED: 4}


def test_paper_gaps_in_the_summary_are_the_theorem_by_hand(settings: dict[str, Any]) -> None:
    """At the reference g1 = (1-f) mean u and g2 = (1-f) mean v."""
    result = run_theory(TheoryConfig(**settings, lambdas="0.9"))
    gaps = summarize_theory(result.frame, [0.9])["paper_gaps"]["0.9"]
    assert gaps["g1"]["mean"] == pytest.approx(0.1 * result.frame["u"].mean())
    assert gaps["g2"]["mean"] == pytest.approx(0.1 * result.frame["v"].mean())


@pytest.mark.parametrize("text", ["", "a", "0.5,-1", "0.5,inf"])
def test_lambdas_that_are_none(text: str) -> None:
    with pytest.raises(DpotoolError, match=r"--lambdas: not a list of shift factors"):
        parse_lambdas(text)


def test_gamma_is_checked_before_anything_is_loaded() -> None:
    with pytest.raises(DpotoolError, match="--gamma"):
        run_theory(TheoryConfig(model="nowhere", gamma=0.0))
