"""The callback inside TRL's own DPOTrainer: what it finds is what `score` finds, and training does not notice it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model, write_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

import dpotool
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.measures.callback import _read_metrics
from dpotool.report.page import write_report
from dpotool.runs.folder import RunFolder
from dpotool.settings.reading import ReportConfig

trl = pytest.importorskip("trl")
N_STEPS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("callback")
    return save_tiny_model(folder / "tiny"), write_pairs(folder / "pairs.jsonl", 24)


def read_rows(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]


def train(files: tuple[Path, Path], folder: Path, *, watched: bool, lora: bool = False, **options: Any) -> Any:
    """Trains with dropout at work, so that a draw too many would show in the weights."""
    from datasets import Dataset

    model_path, data = files
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(model_path, attention_dropout=0.2)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    peft = None
    if lora:
        from peft import LoraConfig

        peft = LoraConfig(r=2, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM")
    callback = dpotool.DisplacementCallback(str(data), tokenizer, every=2, **options)
    rows = read_rows(data)[:16]
    arguments = trl.DPOConfig(
        output_dir=str(folder),
        max_steps=N_STEPS,
        per_device_train_batch_size=4,
        learning_rate=5e-2,
        disable_dropout=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.DPOTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]),
        processing_class=tokenizer,
        callbacks=[callback] if watched else [],
        peft_config=peft,
    )
    trainer.train()
    return trainer, callback


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_training_does_not_notice_it(files: tuple[Path, Path], tmp_path: Path, lora: bool) -> None:
    states, weights = [], []
    for watched in (False, True):
        trainer, _ = train(files, tmp_path / f"run-{watched}", watched=watched, lora=lora)
        numpy = np.random.get_state()[1].tolist()
        states.append((random.getstate(), numpy, torch.get_rng_state().tolist()))
        weights.append({name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()})
        modes = {module.training for module in trainer.model.modules()}
        assert modes == {True}
    assert states[0] == states[1]
    for name, parameter in weights[0].items():
        assert torch.equal(parameter, weights[1][name]), name


def test_what_it_finds_is_what_scoring_finds(files: tuple[Path, Path], tmp_path: Path) -> None:
    trainer, callback = train(files, tmp_path / "run", watched=True)
    pairs = callback.pair_set.pairs
    start = AutoModelForCausalLM.from_pretrained(files[0])
    before, after = compute_pair_logps(start, pairs), compute_pair_logps(trainer.model, pairs)
    change = after.chosen - before.chosen
    assert callback.latest["displacement/chosen"] == pytest.approx(change.mean(), rel=1e-4)
    assert callback.latest["displacement/share"] == pytest.approx((change < 0).mean())
    margins = change - (after.rejected - before.rejected)
    assert callback.latest["displacement/accuracies"] == pytest.approx((margins > 0).mean())
    assert callback.latest["displacement/chosen_low"] <= callback.latest["displacement/chosen"]

    folder = RunFolder(tmp_path / "run" / "displacement")
    assert folder.read_manifest()["status"] == "finished"
    rows = folder.read_metrics()
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert rows[0]["displacement/chosen"] == 0.0
    logged = [row["step"] for row in trainer.state.log_history if "displacement/chosen" in row]
    assert logged == [0, 2, 4, 6]
    run = ScoredRun.open(folder.list_tables("score")[0])
    np.testing.assert_allclose(run.scored["chosen_displacement"], change, rtol=1e-3, atol=1e-4)


def test_a_resumed_run_compares_with_its_start(files: tuple[Path, Path], tmp_path: Path) -> None:
    trainer, callback = train(files, tmp_path / "run", watched=True)
    trainer.state.global_step = 3
    again = dpotool.DisplacementCallback(callback.pair_set, trainer.processing_class)
    again.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    np.testing.assert_array_equal(again._reference.chosen, callback._reference.chosen)
    other = dpotool.DisplacementCallback(callback.pair_set, trainer.processing_class, output=str(tmp_path / "none"))
    with pytest.raises(DpotoolError, match="no values of its start"):
        other.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


def test_what_is_not_known_is_not_logged() -> None:
    """No pair has a finite log-probability any more: the trainer goes on to its own guards."""
    known = {"value": 0.5, "ci_low": 0.25, "ci_high": 0.75}
    summary = dict.fromkeys(("chosen_displacement", "rejected_displacement", "chosen_displaced_share"))
    found = _read_metrics(summary | {"reward_accuracy": known})
    assert found == {
        "displacement/accuracies": 0.5,
        "displacement/accuracies_low": 0.25,
        "displacement/accuracies_high": 0.75,
    }


def test_rows_in_memory_are_read_as_those_of_a_file(files: tuple[Path, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(files[0])
    from_file, in_memory = (
        dpotool.DisplacementCallback(pairs, tokenizer).pair_set for pairs in (str(files[1]), read_rows(files[1]))
    )
    assert from_file.pairs == in_memory.pairs


def test_harm_is_said_once_and_a_report_reads_the_folder(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At this learning rate every look after the second finds harm."""
    train(files, tmp_path / "run", watched=True)
    said = [record.getMessage() for record in caplog.records if "Harmful displacement" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("step ")
    report = write_report([str(tmp_path / "run" / "displacement")], ReportConfig(output=str(tmp_path / "report.md")))
    assert "Harmful displacement" in report.path.read_text(encoding="utf-8")
