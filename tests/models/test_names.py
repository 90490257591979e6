"""Whose numbers lie where: no model's scores go under another's name, and ~ is home."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from tiny_models import save_tiny_model, write_pairs
from transformers import AutoConfig, AutoModelForCausalLM

from dpotool.cache.entries import cache_root
from dpotool.compare.findings import find_out
from dpotool.errors import DpotoolError
from dpotool.measures.checkpoints import has_only_checkpoints
from dpotool.measures.run import score_models
from dpotool.models.determinism import resolve_max_length
from dpotool.models.loading import load_model, load_tokenizer
from dpotool.runs.folder import RunFolder
from dpotool.settings.scoring import ScoreConfig
from dpotool.settings.shared import DataSettings
from dpotool.training.config import TrainConfig
from dpotool.training.run import train


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_pairs(tmp_path / "p.jsonl", 4))


def test_a_second_model_of_the_same_last_name_is_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        save_tiny_model(tmp_path / name / "final", seed=number)
    config = ScoreConfig(data=data, noise_floor=False)
    score_models(["a/final"], config)
    with pytest.raises(DpotoolError, match=r"runs/final: holds the scores of another model.*--output"):
        score_models(["b/final"], config)
    score_models([str(tmp_path / "a" / "final")], config)  # the same one, by another path
    score_models(["b/final"], ScoreConfig(data=data, noise_floor=False, output="runs/b-final"))


def test_a_model_from_elsewhere_is_called_as_the_user_says(data: str, tmp_path: Path) -> None:
    model, other = (str(save_tiny_model(tmp_path / name, seed=seed)) for seed, name in enumerate(("m", "n")))
    told = {"data": data, "noise_floor": False, "reference": other}
    score_models([model], ScoreConfig(output=str(tmp_path / "a"), loss="shift", lambda_=0.9, **told))
    score_models([model], ScoreConfig(output=str(tmp_path / "b"), label="run 7", loss="sigmoid", **told))
    runs = find_out([str(tmp_path / "a"), str(tmp_path / "b")]).comparison.runs
    assert runs[["label", "loss", "lambda"]].values.tolist() == [["DPO-Shift λ=0.9", "shift", 0.9], ["run 7", "dpo", 1]]
    with pytest.raises(DpotoolError, match="--label: one label for several models"):
        score_models([model, other], ScoreConfig(label="x", data=data))
    with pytest.raises(DpotoolError, match=r"unknown loss 'shfit'\. Did you mean 'shift'"):
        score_models([model], ScoreConfig(loss="shfit", data=data))
    with pytest.raises(DpotoolError, match="--lambda: is shown for DPO-Shift only"):
        score_models([model], ScoreConfig(lambda_=0.9, data=data))


def test_a_run_knows_its_own_loss(data: str, tmp_path: Path) -> None:
    model = str(save_tiny_model(tmp_path / "m"))
    run = str(tmp_path / "run")
    train(TrainConfig(model=model, data=data, max_steps=1, output=run))
    [scored] = score_models([run], ScoreConfig(loss="dpo", lambda_=None, noise_floor=False))  # --config run.yaml
    assert scored.summary["settings"]["loss"] is None
    with pytest.raises(DpotoolError, match="--loss: the run was trained with another loss; expected dpo, got ipo"):
        score_models([run], ScoreConfig(loss="ipo"))


def test_run_yaml_says_the_type_that_was_scored_in(data: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    for dtype, expected in (("auto", "bfloat16"), ("float64", "float64")):
        out = tmp_path / dtype
        score_models([str(folder)], ScoreConfig(data=data, noise_floor=False, dtype=dtype, output=str(out)))
        assert RunFolder(out).read_manifest()["config"]["dtype"] == expected


def test_tilde_is_home_in_every_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TrainConfig(model="~/m", data="~/p.jsonl", output="~/run", reference="~/r")
    assert (config.model, config.data) == (f"{tmp_path}/m", f"{tmp_path}/p.jsonl")
    assert (config.output, config.reference) == (f"{tmp_path}/run", f"{tmp_path}/r")
    assert DataSettings(data="a~b").data == "a~b"


def test_a_home_that_nobody_knows_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose user the system does not know, or of `~name` for a name that nobody has."""
    with pytest.raises(DpotoolError, match=r"~nobody-here/m: begins in a home folder that is not known here\. Write"):
        TrainConfig(model="~nobody-here/m")
    with pytest.raises(DpotoolError, match="~nobody-here/m: begins in a home folder"):
        has_only_checkpoints("~nobody-here/m")
    monkeypatch.delenv("DPOTOOL_CACHE")
    monkeypatch.setattr(Path, "expanduser", Mock(side_effect=RuntimeError))
    with pytest.raises(DpotoolError, match="Name a folder by the environment variable DPOTOOL_CACHE"):
        cache_root()


def test_a_stray_temperature_does_not_cost_the_run(data: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    settings = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    run = train(
        TrainConfig(model=str(folder), data=data, max_steps=2, save_steps=1, output=str(tmp_path / "run"))
    ).folder
    assert run.read_manifest()["status"] == "finished"
    saved = json.loads((run.path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 2
    assert "temperature" not in saved


def test_limits_of_a_composite_model_stand_in_its_text_part(tmp_path: Path) -> None:
    folder = str(save_tiny_model(tmp_path / "m"))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    composite = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 77})
    model.config = composite
    assert resolve_max_length(None, model, tokenizer) == 77
