"""Predicted changes between two checkpoints: exact to first order at an end, to second order in the middle."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_family
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model, write_pairs

from dpotool.errors import DpotoolError
from dpotool.gradients.prediction import compute_prediction, measure_distance, run_prediction
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import summary_path
from dpotool.settings.scoring import PredictConfig
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

SIZES = np.array([4e-4, 2e-4, 1e-4])


def moved_by(model: torch.nn.Module, size: float) -> torch.nn.Module:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def residual_slope(at: str) -> float:
    model, pairs = build_family("llama-tied-biased"), make_pairs(4)
    residuals = []
    with EverythingInFloat64():
        for size in SIZES:
            frame = compute_prediction(model, moved_by(model, size), pairs, at=at, batch_tokens=60)
            residuals.append(np.abs(frame["chosen_change"] - frame["predicted_chosen_change"]).mean())
    return float(np.polyfit(np.log(SIZES), np.log(residuals), 1)[0])


@pytest.mark.parametrize(("at", "order"), [("from", 2), ("to", 2), ("middle", 3)])
def test_what_is_left_over_is_of_the_next_order(at: str, order: int):
    assert order - 0.1 <= residual_slope(at) <= order + 0.1


def test_both_models_are_left_as_they_were():
    first = build_family("llama", dtype=torch.float32)
    second = moved_by(first, 1e-3)
    before = [copy.deepcopy(model.state_dict()) for model in (first, second)]
    for at in ("from", "middle", "to"):
        compute_prediction(first, second, make_pairs(2), at=at, batch_tokens=60)
    for model, weights in zip((first, second), before, strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_distance_is_relative_to_the_first_models_norm():
    first = torch.nn.Linear(2, 1, bias=False)
    second = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[3.0, 4.0]]))
        second.weight.copy_(torch.tensor([[3.0, 3.0]]))
    assert measure_distance(first, second) == pytest.approx(1 / 5)


def test_models_of_two_architectures_are_refused():
    with pytest.raises(DpotoolError, match="not of one architecture"):
        compute_prediction(build_family("llama"), build_family("qwen3"), make_pairs(1), batch_tokens=60)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(save_tiny_model(tmp_path / "tiny")),
        "data": str(write_pairs(tmp_path / "pairs.jsonl", 6)),
        "output": str(tmp_path / "run"),
        "learning_rate": 1e-4,
    }


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_is_compared_with_the_model_it_began_with(settings: dict[str, Any], lora: bool) -> None:
    if lora:
        pytest.importorskip("peft", reason="LoRA needs peft (dpotool[peft])")
        settings |= {"lora": True, "lora_r": 2, "learning_rate": 1e-2}
    run = train(TrainConfig(**settings)).folder
    result = run_prediction(str(run.path), None, PredictConfig(data=settings["data"], at="middle"))
    assert result.path == RunFolder(run.path).list_tables("prediction")[0]
    summary = json.loads(summary_path(result.path).read_text())
    assert summary["from"] == settings["model"] and summary["n"] == 6 and summary["distance"] > 0
    assert (result.frame["chosen_change"] != 0).all()
    assert summary["chosen"]["correlation"]["value"] > 0.99
    explicit = run_prediction(str(run.path), settings["model"], PredictConfig(data=settings["data"], at="middle"))
    assert explicit.frame.equals(result.frame)


def test_a_model_from_elsewhere_needs_the_one_it_came_from(settings: dict[str, Any]) -> None:
    with pytest.raises(DpotoolError, match=r"nothing says which model .* dpotool predict FROM TO"):
        run_prediction(settings["model"], None, PredictConfig(data=settings["data"]))


def test_a_model_from_elsewhere_came_from_the_reference_it_was_scored_against(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "scored")
    folder.write_manifest(collect_manifest("score", {"model": settings["model"], "reference": settings["model"]}))
    config = PredictConfig(data=settings["data"], limit=4, output=str(folder.path))
    assert run_prediction(settings["model"], None, config).summary["from"] == settings["model"]


def test_what_is_not_there_is_not_asked_for_its_beginning(settings: dict[str, Any]) -> None:
    with pytest.raises(DpotoolError, match=r"nope: no such folder, and of a model from the hub"):
        run_prediction("nope", None, PredictConfig(data=settings["data"]))


def test_predictions_from_two_beginnings_and_of_a_plain_model_stay_apart(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    ends = [str(save_tiny_model(tmp_path / name, seed=seed)) for name, seed in (("one", 1), ("two", 2))]
    config = PredictConfig(data=settings["data"], output=str(tmp_path / "found"))
    results = [run_prediction(settings["model"], start, config) for start in ends]
    assert [result.path.name for result in results] == ["pairs-all-from-one.parquet", "pairs-all-from-two.parquet"]
    assert all(result.path.is_file() for result in results)
    assert RunFolder(tmp_path / "found").read_manifest()["kind"] == "prediction"


def test_a_model_whose_values_are_no_numbers_is_named_by_row(settings: dict[str, Any], tmp_path: Path) -> None:
    broken = save_tiny_model(tmp_path / "broken", seed=3)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DpotoolError, match=r"row 0, for one: a value of 6 of 6 pairs is not finite"):
        run_prediction(str(broken), settings["model"], PredictConfig(data=settings["data"], output=str(tmp_path / "o")))


def test_points_that_are_none() -> None:
    with pytest.raises(DpotoolError, match="--at: no such point; expected from or middle or to, got 'half'"):
        run_prediction("nowhere", None, PredictConfig(at="half"))
