"""Adapters: the reference is the model without the new adapter, and the run folder holds the adapter alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import read_weights, training_rows

from dpotool.errors import DpotoolError
from dpotool.measures.run import score_models
from dpotool.models.loading import load_model
from dpotool.runs.folder import RunFolder
from dpotool.settings.scoring import ScoreConfig

pytest.importorskip("peft", reason="LoRA needs peft (dpotool[peft])")

Run = Callable[..., RunFolder]


def test_the_reference_is_the_model_without_the_adapter(run: Run) -> None:
    folder = run(lora=True, lora_r=4)
    first, *_, last = training_rows(folder)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(last["displacement/chosen"]) > 1e-3
    assert folder.read_manifest()["fingerprints"]["reference"] == folder.read_manifest()["fingerprints"]["model"]


def test_the_folder_holds_the_adapter_and_loads_anywhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(lora=True, lora_r=4)
    assert (folder.path / "adapter_config.json").exists() and not (folder.path / "model.safetensors").exists()
    assert all("lora_" in name for name in read_weights(folder.path))
    monkeypatch.chdir("/")
    loaded = load_model(str(folder.path))
    assert any("lora_" in name for name, _ in loaded.named_parameters())


def test_scores_equal_the_evaluation_logged_in_training(run: Run) -> None:
    folder = run(lora=True, lora_r=4)
    logged = [row for row in folder.read_metrics() if "eval_logps/chosen" in row][-1]
    [result] = score_models([str(folder.path)], ScoreConfig())
    assert result.summary["chosen_logps"]["mean"] == pytest.approx(logged["eval_logps/chosen"], abs=1e-4)
    assert result.summary["chosen_displacement"]["mean"] == pytest.approx(logged["eval_displacement/chosen"], abs=1e-4)


def test_an_adapter_can_be_trained_on(run: Run, tmp_path: Path) -> None:
    first = run(lora=True, lora_r=4, output=str(tmp_path / "first"))
    second = run(model=str(first.path), output=str(tmp_path / "second"))
    assert training_rows(second)[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    before, after = read_weights(first.path), read_weights(second.path)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_on_an_adapter_is_refused(run: Run, tmp_path: Path) -> None:
    first = run(lora=True, lora_r=4, output=str(tmp_path / "first"))
    with pytest.raises(DpotoolError, match="--lora: the model is itself an adapter"):
        run(model=str(first.path), lora=True, output=str(tmp_path / "second"))


def test_unknown_target_layers_are_one_line(run: Run) -> None:
    with pytest.raises(DpotoolError, match="--lora-targets"):
        run(lora=True, lora_targets="nothing_here")


def test_without_peft_the_error_says_how_to_get_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DpotoolError, match=r"pip install 'dpotool\[peft\]'"):
        run(lora=True)


def test_nothing_but_progress_reaches_stderr(settings: dict[str, Any]) -> None:
    """The libraries' own bars and warnings, of the whole model's saving and of the adapter's making."""
    code = (
        "import json, sys; from dpotool.training.config import TrainConfig; from dpotool.training.run import train\n"
        "settings = json.loads(sys.argv[1]); folder = settings.pop('output')\n"
        "for lora in (False, True):\n"
        "    train(TrainConfig(**settings, output=f'{folder}-{lora}', lora=lora, max_steps=2, save_at='1'))\n"
    )
    words = [sys.executable, "-c", code, json.dumps(settings)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout + result.stderr == ""
