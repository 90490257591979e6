"""The theory table of a run: its reference, which parameters count, and what an interruption leaves."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_models import save_tiny_model, write_pairs
from training_helpers import read_weights

from dpotool.cache.checking import check_store
from dpotool.cache.clearing import clear_entries
from dpotool.cache.entries import list_entries
from dpotool.errors import DpotoolError
from dpotool.gradients import run as theory_run
from dpotool.gradients.engine import GradientEngine
from dpotool.gradients.run import NOT_REACHED, run_theory
from dpotool.runs.about import read_metadata
from dpotool.runs.summaries import summary_path
from dpotool.settings.scoring import TheoryConfig, parse_lambdas
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


def test_an_interruption_keeps_what_was_finished_and_the_next_run_computes_the_rest(
    settings: dict[str, Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings["batch_tokens"] = 1  # a batch a pair, the longest first
    whole = run_theory(TheoryConfig(**{**settings, "output": settings["output"] + "-whole"}, pairs_only=True))
    shutil.rmtree(own_cache)
    real = GradientEngine.iter_products

    def interrupted(engine: GradientEngine, pairs: Any, **options: Any) -> Iterator[Any]:
        for number, batch in enumerate(real(engine, pairs, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(GradientEngine, "iter_products", interrupted)
    result = run_theory(TheoryConfig(**settings))
    assert result.was_interrupted
    expected = pd.read_parquet(whole.path).set_index("pair_id").loc[result.frame["pair_id"]].reset_index()
    pd.testing.assert_frame_equal(pd.read_parquet(result.path), expected)
    assert result.summary["n"] == 2
    assert result.summary["n_excluded"] == {NOT_REACHED: 4}
    monkeypatch.setattr(GradientEngine, "iter_products", counting := _Counting(real))
    again = run_theory(TheoryConfig(**settings, pairs_only=True))
    assert counting.n_pairs == 4 and not again.was_interrupted
    pd.testing.assert_frame_equal(pd.read_parquet(again.path), pd.read_parquet(whole.path))


class _Counting:
    """`GradientEngine.iter_products`, with a count of the pairs that it was asked for."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.n_pairs = 0

    def __get__(self, engine: GradientEngine, _: Any) -> Any:
        return partial(self, engine)

    def __call__(self, engine: GradientEngine, pairs: Any, **options: Any) -> Any:
        self.n_pairs += len(pairs)
        return self.real(engine, pairs, **options)


def test_products_are_stored_by_weights_and_parameters(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other parameters and another model find nothing; a subset and a second run find everything."""
    monkeypatch.setattr(GradientEngine, "iter_products", counting := _Counting(GradientEngine.iter_products))
    other = str(save_tiny_model(tmp_path / "other", seed=1))
    counts = []
    for changes in ({}, {"parameters": "head"}, {"model": other, "output": str(tmp_path / "o")}, {"limit": 3}, {}):
        before = counting.n_pairs
        run_theory(TheoryConfig(**{**settings, **changes}, pairs_only=True))
        counts.append(counting.n_pairs - before)
    assert counts == [6, 6, 6, 0, 0]
    entries = [entry for entry in list_entries() if entry.kind == "gradient products"]
    assert [entry.n_pairs for entry in entries] == [6, 6, 6]
    assert all(check_store(entry).is_sound for entry in entries)
    clear_entries(entries)
    assert not any(entry.path.exists() for entry in entries)


def test_an_interruption_of_a_later_stage_keeps_the_table(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(theory_run, "compute_batch_products", interrupted)
    result = run_theory(TheoryConfig(**settings))
    assert result.was_interrupted and result.summary["n"] == 6
    assert "advice" not in result.summary
    assert "batch" not in result.summary["gaps"]["0.5"]
    assert pd.read_parquet(result.path)["chosen_dot_mean_chosen"].isna().all()


def test_paper_gaps_in_the_summary_are_the_theorem_by_hand(settings: dict[str, Any]) -> None:
    """At the reference g1 = (1-f) mean u and g2 = (1-f) mean v."""
    result = run_theory(TheoryConfig(**settings, lambdas="0.9"))
    gaps = result.summary["gaps"]["0.9"]["paper"]
    assert gaps["g1"]["mean"] == pytest.approx(0.1 * result.frame["u"].mean())
    assert gaps["g2"]["mean"] == pytest.approx(0.1 * result.frame["v"].mean())


def test_batch_gaps_at_the_reference_are_products_of_the_mean_gradients(settings: dict[str, Any]) -> None:
    """d = 0, e = beta (1-f)/2, k = gamma/4: g1 = e <mean L, mean W>, g2 = e k (<mean L, mean W> - |mean L|^2)."""
    result = run_theory(TheoryConfig(**settings, lambdas="0.6", beta=0.3, gamma=2.0))
    frame, gaps = result.frame, result.summary["gaps"]["0.6"]["batch"]
    e, k = 0.3 * 0.4 / 2, 2.0 / 4
    cross = frame["rejected_dot_mean_chosen"].mean()
    assert cross == pytest.approx(frame["chosen_dot_mean_rejected"].mean(), rel=1e-5)
    assert gaps["g1"]["mean"] == pytest.approx(e * cross, rel=1e-5)
    assert gaps["g2"]["mean"] == pytest.approx(e * k * (cross - frame["rejected_dot_mean_rejected"].mean()), rel=1e-5)
    assert gaps["g1"]["ci_low"] < gaps["g1"]["mean"] < gaps["g1"]["ci_high"]
    signs = result.summary["sign_disagreements"]["0.6"]
    assert signs["self_step"]["g1"]["n"] == signs["self_step"]["g2"]["n"] == 0, "the same at the reference"
    moved = np.sign(frame["chosen_dot_mean_rejected"]) != np.sign(frame["u"])
    assert signs["batch"]["g1"]["n"] == moved.sum()


def test_what_was_asked_for_is_in_the_summary(settings: dict[str, Any]) -> None:
    result = run_theory(TheoryConfig(**settings, lambdas="0.7", parameters="last-1", check=2, verify=3, top=2))
    summary = json.loads(summary_path(result.path).read_text())
    assert summary["parameters"] == "last 1 of 2 layers"
    assert summary["autograd_fallback"] == []
    assert summary["check"]["n"] == 2 and summary["check"]["passed"]
    assert set(summary["verification"]["optimizers"]) == {"sgd", "adamw"}
    assert set(summary["advice"]) == {"sgd", "adamw"}
    assert ("drivers" in summary) == bool(summary["advice"]["sgd"]["grid"]), "without a scale there is no push"


def test_pairs_only_spends_nothing_on_batches(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory_run, "compute_batch_products", None)
    result = run_theory(TheoryConfig(**settings, pairs_only=True))
    assert "advice" not in result.summary and not result.was_interrupted


def test_a_part_never_replaces_the_whole(settings: dict[str, Any]) -> None:
    whole = run_theory(TheoryConfig(**settings, pairs_only=True)).path
    limited = run_theory(TheoryConfig(**settings, pairs_only=True, limit=2)).path
    last = run_theory(TheoryConfig(**settings, pairs_only=True, parameters="last-1")).path
    assert [path.stem for path in (whole, limited, last)] == [
        "pairs-all",
        "pairs-all-limit-2",
        "pairs-all-last-1",
    ]
    assert len(pd.read_parquet(whole)) == 6


def test_the_table_says_which_data_it_is_of(settings: dict[str, Any]) -> None:
    result = run_theory(TheoryConfig(**settings, pairs_only=True))
    about = read_metadata(result.path)
    assert about["data_fingerprint"] and about["beta"] == 0.1 and about["parameters"] == "all trained parameters"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adam"}, "--optimizer: unknown optimizer 'adam'. Did you mean 'adamw'?"),
        ({"parameters": "last-9"}, "--parameters: the model has fewer layers; expected at most last-2"),
    ],
)
def test_settings_that_no_table_can_be_made_with(settings: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError, match=re.escape(message)):
        run_theory(TheoryConfig(**settings, **given))


@pytest.mark.parametrize("text", ["", "a", "0.5,-1", "0.5,inf"])
def test_lambdas_that_are_none(text: str) -> None:
    with pytest.raises(DpotoolError, match=r"--lambdas: not a list of shift factors"):
        parse_lambdas(text)


def test_gamma_is_checked_before_anything_is_loaded() -> None:
    with pytest.raises(DpotoolError, match="--gamma"):
        run_theory(TheoryConfig(model="nowhere", gamma=0.0))
