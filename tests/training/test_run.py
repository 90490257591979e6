"""Whole training runs on a tiny model: what they leave behind, and that the numbers are the right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_helpers import read_weights, training_rows
from transformers import AutoModelForCausalLM

from dpotool.errors import DpotoolError
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood import scorer
from dpotool.likelihood.scorer import Scorer
from dpotool.measures.run import score_models
from dpotool.models.identity import fingerprint_model
from dpotool.runs.folder import RunFolder
from dpotool.settings.fields import Range
from dpotool.settings.scoring import ScoreConfig
from dpotool.training.config import TrainConfig
from dpotool.training.run import _warn_of_memory, train

Run = Callable[..., RunFolder]

TRL_NAMES = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
}


def test_leaves_a_checkpoint_with_its_record(run: Run) -> None:
    folder = run()
    assert {path.name for path in folder.path.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
        "run.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    modes = {path.stat().st_mode for path in folder.path.iterdir()}
    assert len(modes) == 1, "who may read the rest may read the weights"
    manifest = folder.read_manifest()
    assert manifest["status"] == "finished"
    assert manifest["config"]["learning_rate"] == 1e-2
    assert manifest["config"]["beta"] == 0.1, "defaults are resolved"
    assert manifest["fingerprints"]["reference"] == manifest["fingerprints"]["model"]
    assert manifest["data"]["train"]["n_pairs"] == 24
    AutoModelForCausalLM.from_pretrained(folder.path)


def test_metrics_carry_trl_names_and_the_displacement(run: Run) -> None:
    rows = training_rows(run())
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0].keys() >= TRL_NAMES | {"lambda", "displacement/chosen", "learning_rate", "grad_norm"}


@pytest.mark.parametrize("loss", [{"loss": "dpo"}, {"loss": "shift", "lambda_": 0.3}])
def test_first_step_is_at_the_reference(run: Run, loss: dict[str, Any]) -> None:
    """Policy = reference: margins are 0 and the loss is log 2, whatever lambda is."""
    first = training_rows(run(**loss))[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["displacement/chosen"] == pytest.approx(0, abs=1e-4)


def test_logged_margin_is_beta_times_the_difference_of_log_ratios(run: Run) -> None:
    row = training_rows(run(beta=0.3))[-1]
    assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-6)
    assert row["rewards/chosen"] == pytest.approx(0.3 * row["displacement/chosen"], abs=1e-6)
    assert abs(row["rewards/margins"]) > 1e-4


def test_scores_equal_the_evaluation_logged_in_training(run: Run) -> None:
    folder = run(loss="shift", lambda_=0.8)
    logged = [row for row in folder.read_metrics() if "eval_logps/chosen" in row][-1]
    [result] = score_models([str(folder.path)], ScoreConfig())
    assert result.summary["n"] == 8
    assert result.summary["chosen_logps"]["mean"] == pytest.approx(logged["eval_logps/chosen"], abs=1e-4)
    assert result.summary["rejected_logps"]["mean"] == pytest.approx(logged["eval_logps/rejected"], abs=1e-4)
    assert result.summary["reward_margins"]["mean"] == pytest.approx(logged["eval_rewards/margins"], abs=1e-5)
    assert result.summary["reward_accuracy"]["value"] == logged["eval_rewards/accuracies"]
    assert result.summary["chosen_displacement"]["mean"] == pytest.approx(logged["eval_displacement/chosen"], abs=1e-4)


def test_evaluation_before_the_first_step_is_the_reference(run: Run) -> None:
    first = next(row for row in run().read_metrics() if "eval_loss" in row)
    assert first["step"] == 0
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("loss", ["dpo", "sft"])
def test_accumulation_changes_nothing(run: Run, tmp_path: Path, loss: str) -> None:
    """One micro-batch of 8 or eight of 1: the same mean, although completions (SFT counts tokens) differ in length."""
    with EverythingInFloat64():  # the two may lay out pairs differently, and norms are in float32 otherwise
        whole = run(loss=loss, batch_size=8, dtype="float64", output=str(tmp_path / "whole"))
        parts = run(loss=loss, batch_size=1, gradient_accumulation=8, dtype="float64", output=str(tmp_path / "parts"))
    expected = read_weights(whole.path)
    for name, weight in read_weights(parts.path).items():
        assert torch.allclose(weight, expected[name], rtol=1e-9, atol=1e-11), name
    losses = [[row["loss"] for row in training_rows(folder)] for folder in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_gradient_checkpointing_changes_nothing(run: Run, tmp_path: Path) -> None:
    plain = read_weights(run(dtype="float64", output=str(tmp_path / "plain")).path)
    saving = read_weights(run(dtype="float64", gradient_checkpointing=True, output=str(tmp_path / "saving")).path)
    assert all(torch.allclose(plain[name], saving[name], rtol=1e-9, atol=1e-12) for name in plain)


def test_sft_loss_is_the_mean_cross_entropy_over_chosen_tokens(run: Run, settings: dict[str, Any]) -> None:
    folder = run(loss="sft", max_steps=1, batch_size=24)
    [row] = training_rows(folder)
    [result] = score_models(
        [settings["model"]], ScoreConfig(**_data_of(settings, "train"), output=str(folder.path / "x"))
    )
    scored = result.frame
    assert row["loss"] == pytest.approx(-scored["chosen_logps"].sum() / scored["chosen_tokens"].sum(), rel=1e-5)
    assert "rewards/margins" not in row


def _data_of(settings: dict[str, Any], split: str) -> dict[str, Any]:
    return {"data": settings["data"], "test_fraction": settings["test_fraction"], "split": split}


def test_dpo_is_shift_with_lambda_one(run: Run, tmp_path: Path) -> None:
    dpo = read_weights(run(loss="dpo", output=str(tmp_path / "dpo")).path)
    shift = read_weights(run(loss="shift", lambda_=1.0, output=str(tmp_path / "shift")).path)
    assert all(torch.equal(dpo[name], shift[name]) for name in dpo)


def test_linear_schedules_are_logged_step_by_step(run: Run) -> None:
    """3 steps from 0.4 to 1: f = t/3 * 0.6 + 0.4."""
    rows = training_rows(run(loss="shift", lambda_schedule="linear_increase", lambda_min=0.4))
    assert [row["lambda"] for row in rows] == pytest.approx([0.4, 0.6, 0.8])


@pytest.mark.parametrize("loss", ["odpo", "ipo", "hinge", "robust"])
def test_every_loss_trains(run: Run, loss: str) -> None:
    rows = training_rows(run(loss=loss))
    assert len(rows) == 3 and all(math.isfinite(row["loss"]) for row in rows)


def test_run_yaml_repeats_the_run(run: Run, tmp_path: Path) -> None:
    folder = run(loss="shift", lambda_=0.7)
    again = train(replace(TrainConfig.read(folder.read_manifest()["config"]), output=str(tmp_path / "again")))
    expected = read_weights(folder.path)
    assert all(torch.equal(weight, expected[name]) for name, weight in read_weights(again.folder.path).items())


def test_the_reference_is_computed_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(output=str(tmp_path / "first"))
    computed: list[int] = []
    real = Scorer._compute_and_keep

    def count(self: Scorer, todo: Any, *rest: Any) -> Any:
        computed.append(len(todo))
        return real(self, todo, *rest)

    monkeypatch.setattr(Scorer, "_compute_and_keep", count)
    assert run(loss="ipo", output=str(tmp_path / "second")).read_manifest()["status"] == "finished"
    assert computed == [8], "the test pairs under the trained weights, and no reference value"


def test_stored_values_of_another_model_stop_the_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Scorer.score

    def wrong(*args: Any, **kwargs: Any) -> Any:
        values = real(*args, **kwargs)
        return replace(values, chosen=values.chosen + 1.0)

    monkeypatch.setattr(Scorer, "score", wrong)
    with pytest.raises(DpotoolError, match="the reference does not match: before the first step"):
        run()


def test_another_reference_may_be_named(run: Run, tmp_path: Path) -> None:
    sft = run(loss="sft", output=str(tmp_path / "sft"))
    folder = run(reference=str(sft.path), output=str(tmp_path / "dpo"))
    manifest = folder.read_manifest()
    assert manifest["fingerprints"]["reference"] != manifest["fingerprints"]["model"]
    assert abs(training_rows(folder)[0]["displacement/chosen"]) > 0.1
    [result] = score_models([str(folder.path)], ScoreConfig())
    logged = [row for row in folder.read_metrics() if "eval_rewards/margins" in row][-1]
    assert result.summary["reward_margins"]["mean"] == pytest.approx(logged["eval_rewards/margins"], abs=1e-5)


@pytest.fixture
def _without_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a learning rate through that overflows weights in one step, as no rate in its range does for sure."""
    monkeypatch.setattr(Range, "__contains__", lambda *_: True)


@pytest.mark.usefixtures("_without_ranges")
def test_turning_non_finite_stops_and_keeps_the_last_good_checkpoint(run: Run, settings: dict[str, Any]) -> None:
    with pytest.raises(DpotoolError, match=r"turned non-finite at step [123].*no checkpoint .*Lower --learning-rate"):
        run(learning_rate=1e30, max_grad_norm=0.0, save_steps=1)
    folder = RunFolder(Path(settings["output"]))
    assert not list(folder.path.glob("checkpoint-*")), "none whose every score is not finite"
    assert folder.read_manifest()["status"] == "failed"
    assert not (folder.path / "model.safetensors").exists(), "broken weights must not look like a result"


@pytest.mark.usefixtures("_without_ranges")
def test_turning_non_finite_in_the_last_step_is_no_finished_run(run: Run, settings: dict[str, Any]) -> None:
    with pytest.raises(DpotoolError, match=r"turned non-finite at step 1: "):
        run(learning_rate=1e30, max_grad_norm=0.0, max_steps=1)
    folder = RunFolder(Path(settings["output"]))
    assert folder.read_manifest()["status"] == "failed"
    assert not (folder.path / "model.safetensors").exists()


def test_a_non_finite_gradient_leaves_the_weights_before_it(
    run: Run, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpotool.training import resumable

    real = resumable.GradientGuard.on_pre_optimizer_step

    def poison(self: Any, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 2:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        real(self, args, state, control, model=model, **kwargs)

    monkeypatch.setattr(resumable.GradientGuard, "on_pre_optimizer_step", poison)
    with pytest.raises(
        DpotoolError, match=r"at step 3: the gradient's norm is not a number; .*checkpoint-2 is the last"
    ):
        run()
    kept = read_weights(Path(settings["output"]) / "checkpoint-2")
    assert all(bool(torch.isfinite(weight).all()) for weight in kept.values())


def test_output_folder_with_something_in_it_is_refused(run: Run, settings: dict[str, Any]) -> None:
    folder = run()
    with pytest.raises(DpotoolError, match=r"the output folder is not empty.*--resume"):
        run()
    assert folder.read_manifest()["status"] == "finished"


def test_tensorboard_gets_the_metrics(run: Run) -> None:
    pytest.importorskip("tensorboard", reason="the service needs its package")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(report_to="tensorboard")
    [events] = folder.path.rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    logged = [event.value for event in accumulator.Scalars("train/rewards/margins")]
    assert logged == pytest.approx([row["rewards/margins"] for row in training_rows(folder)], abs=1e-7)


def test_mixed_precision_starts_at_its_reference_too(run: Run) -> None:
    folder = run(bf16=True)
    assert training_rows(folder)[0]["rewards/margins"] == pytest.approx(0, abs=0.05)
    logged = [row for row in folder.read_metrics() if "eval_logps/chosen" in row][-1]
    [result] = score_models([str(folder.path)], ScoreConfig())
    assert result.summary["chosen_logps"]["mean"] == pytest.approx(logged["eval_logps/chosen"], abs=1e-4)


def test_lambda_with_another_loss_is_an_error(run: Run) -> None:
    with pytest.raises(DpotoolError, match="--lambda: loss 'ipo' has no lambda"):
        run(loss="ipo", lambda_=0.9)


def test_odpo_without_scores_is_an_error_before_training(run: Run, settings: dict[str, Any], tmp_path: Path) -> None:
    from tiny_models import write_pairs

    bare = write_pairs(tmp_path / "bare.jsonl", 8, scores=False)
    with pytest.raises(DpotoolError, match="score"):
        run(loss="odpo", data=str(bare), test_fraction=None)
    assert not (Path(settings["output"]) / "metrics.jsonl").exists()


def test_weights_are_hashed_once(run: Run, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy before and after training, and another reference; not again for each set of pairs."""
    hashed: list[object] = []

    def count(model: torch.nn.Module) -> str:
        hashed.append(model)
        return fingerprint_model(model)

    monkeypatch.setattr(scorer, "fingerprint_model", count)
    folder = run(max_steps=1)
    assert len(hashed) == 2
    fingerprints = folder.read_manifest()["fingerprints"]
    assert fingerprints["reference"] == fingerprints["model"]
    run(max_steps=1, reference=str(tiny_model), output=str(folder.path.parent / "again"))
    assert len(hashed) == 5


def test_evaluations_leave_mixed_precision_on(run: Run, tmp_path: Path) -> None:
    """Steps and reference are in bfloat16 alike, so the first loss is log 2; and looking on changes no weight."""
    looked_at = run(bf16=True, eval_steps=1)
    assert training_rows(looked_at)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    alone = run(bf16=True, eval_steps=10**6, output=str(tmp_path / "alone"))
    weights = read_weights(alone.path)
    for name, tensor in read_weights(looked_at.path).items():
        assert tensor.equal(weights[name])


@pytest.mark.parametrize(("gigabytes", "is_warned"), [(0.0001, True), (80, False)])
def test_a_gpu_that_is_too_small_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, is_warned: bool
) -> None:
    """As if the trainer's device were a GPU of that size; the formula itself is tested beside it."""
    seen: list[str] = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cuda")), need_on_card=lambda: 180_400_000_000 * (gigabytes < 1) or 5e9
    )
    size = SimpleNamespace(total_memory=gigabytes * 1e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: size)
    _warn_of_memory(trainer, SimpleNamespace(warn=seen.append))  # type: ignore[arg-type]
    assert bool(seen) is is_warned
    if seen:
        assert "takes about 180 GB, and this GPU has 0 GB" in seen[0]
