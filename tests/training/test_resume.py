"""Interrupted runs: a signal saves the work, and what is continued ends where an uninterrupted run ends."""

from __future__ import annotations

import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model
from training_helpers import read_weights, training_rows
from transformers import LlamaConfig, LlamaForCausalLM

from dpotool.errors import DpotoolError
from dpotool.progress import Progress
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.training import resumable
from dpotool.training import run as training_run
from dpotool.training.config import TrainConfig
from dpotool.training.folder import reopen
from dpotool.training.resumable import ResumableTrainer
from dpotool.training.run import train

Run = Callable[..., RunFolder]


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends this process SIGINT while a given step runs, as Ctrl-C would."""

    def arrange(step: int) -> None:
        real = resumable.GradientGuard.on_pre_optimizer_step

        def on_pre_optimizer_step(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            real(self, args, state, control, **kwargs)

        monkeypatch.setattr(resumable.GradientGuard, "on_pre_optimizer_step", on_pre_optimizer_step)

    return arrange


@pytest.mark.parametrize(
    "loss",
    [{}, {"loss": "shift", "lambda_schedule": "linear_decrease"}, {"lora": True, "lora_r": 2, "lora_dropout": 0.1}],
    ids=["dpo", "schedule", "lora with dropout"],
)
def test_resumed_equals_uninterrupted(
    run: Run,
    settings: dict[str, Any],
    tmp_path: Path,
    interrupt_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    loss: dict[str, Any],
) -> None:
    whole = run(**loss, output=str(tmp_path / "whole"))
    interrupt_after(2)
    first = train(TrainConfig(**{**settings, **loss}))
    monkeypatch.undo()
    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / "another-cache"))
    assert first.was_interrupted
    assert first.folder.read_manifest()["status"] == "interrupted"
    assert not (first.folder.path / "model.safetensors").exists()
    second = train(TrainConfig(output=settings["output"], resume=True))
    assert second.folder.read_manifest()["status"] == "finished"
    expected = read_weights(whole.path)
    assert all(torch.equal(weight, expected[name]) for name, weight in read_weights(second.folder.path).items())
    kept = ("step", "loss", "logps/chosen", "rewards/margins", "lambda")
    rows, expected_rows = training_rows(second.folder), training_rows(whole)
    assert [[row[name] for name in kept] for row in rows] == [[row[name] for name in kept] for row in expected_rows]


HOLD = """
import sys, time
from dpotool.runs.locks import holding
with holding(sys.argv[1], "train"):
    print(flush=True)
    time.sleep(60)
"""


TINY: dict[str, Any] = {
    "vocab_size": 7, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    warn = note


class Kill(BaseException):
    """Ends a run as a kill does: nothing is tidied up that only an exception of Python's would let it."""


MOMENTS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "before the first checkpoint": ("training.trainer.PreferenceTrainer", "training_step", 2, {}),
    "after the first checkpoint": ("training.trainer.PreferenceTrainer", "training_step", 3, {"save_steps": 1}),
    "while the second is written": ("training.trainer.PreferenceTrainer", "_save_rng_state", 2, {"save_steps": 1}),
    "before the second is sealed": ("training.resumable.checkpoints", "publish", 2, {"save_steps": 1}),
    "between two logged rows": ("training.trainer.PreferenceTrainer", "training_step", 3, {"save_at": "1,2"}),
    "after the last step": ("training.run", "fill_folder", 1, {"scheduler": "constant"}),
    "before it is finished": ("runs.folder.RunFolder", "update_manifest", 1, {"save_at": "1"}),
}
"""What is called -> how often it is, for the kill to come in its place; and settings."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_kill_the_run_ends_as_if_there_had_been_none(
    run: Run, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    owner, name, n_calls, changes = MOMENTS[moment]
    changes = {"logging_steps": 2, "eval_steps": 2, "epochs": 1.4, **changes}  # five steps
    whole = run(**changes, output=str(tmp_path / "whole"))
    target = f"dpotool.{owner}.{name}"
    real, calls = resolve(target), []

    def kill(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == n_calls:
            raise Kill
        return real(*args, **kwargs)

    monkeypatch.setattr(target, kill)
    with pytest.raises(Kill):
        run(**changes)
    monkeypatch.undo()
    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / "another-cache"))
    again = train(TrainConfig(output=settings["output"], resume=True)).folder
    assert again.read_manifest()["status"] == "finished"
    assert again.read_manifest()["layouts"] == whole.read_manifest()["layouts"]
    expected = read_weights(whole.path)
    assert all(torch.equal(weight, expected[name]) for name, weight in read_weights(again.path).items())
    assert without_times(again) == without_times(whole)
    assert {path.name for path in again.path.iterdir()} == {path.name for path in whole.path.iterdir()}


def resolve(target: str) -> Any:
    return pkgutil.resolve_name(target)


def without_times(folder: RunFolder) -> list[dict[str, Any]]:
    """Every row, the closing one too."""
    return [
        {name: value for name, value in row.items() if not re.search("runtime|per_second", name)}
        for row in folder.read_metrics()
    ]


def test_a_run_whose_every_checkpoint_is_damaged_begins_anew_and_says_so(
    run: Run, settings: dict[str, Any], tmp_path: Path, interrupt_after: Callable[[int], None], monkeypatch: Any
) -> None:
    whole = run(output=str(tmp_path / "whole"))
    interrupt_after(2)
    folder = train(TrainConfig(**settings)).folder
    monkeypatch.undo()
    (folder.path / "checkpoint-2" / "optimizer.pt").write_bytes(b"")
    told = Told()
    train(TrainConfig(output=settings["output"], resume=True), progress=told)
    assert any("checkpoint-2: has a damaged optimizer.pt (0 bytes of" in line for line in told.lines), told.lines
    assert any(
        "there is no complete checkpoint to continue from, so the run starts again" in line for line in told.lines
    )
    expected = read_weights(whole.path)
    assert all(torch.equal(weight, expected[name]) for name, weight in read_weights(folder.path).items())


@pytest.mark.parametrize(("what", "setting"), [("the training pairs", "data"), ("the model it started from", "model")])
def test_a_run_is_not_continued_on_what_changed_meanwhile(
    settings: dict[str, Any], tmp_path: Path, interrupt_after: Callable[[int], None], what: str, setting: str
) -> None:
    settings["model"] = str(shutil.copytree(settings["model"], tmp_path / "model"))
    settings["data"] = str(shutil.copy(settings["data"], tmp_path / "pairs.jsonl"))
    interrupt_after(1)
    train(TrainConfig(**settings))
    if setting == "data":
        lines = Path(settings["data"]).read_text().splitlines()
        Path(settings["data"]).write_text("\n".join(lines[::-1]) + "\n")
    else:
        save_tiny_model(Path(settings["model"]), seed=1)
    with pytest.raises(DpotoolError, match=rf"{what} \({re.escape(settings[setting])}\) changed since the run began"):
        train(TrainConfig(output=settings["output"], resume=True))


def test_weights_that_do_not_fit_are_refused_and_tied_ones_are_not_missed() -> None:
    trainer = ResumableTrainer.__new__(ResumableTrainer)
    trainer.model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=True))
    trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=["lm_head.weight"], unexpected_keys=[]))
    for missing, unexpected in ([["model.norm.weight"], []], [[], ["extra"]]):
        with pytest.raises(DpotoolError, match=f"1 weight is missing or too many, {(missing + unexpected)[0]} among"):
            trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=missing, unexpected_keys=unexpected))
    trainer.model = LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False))
    with pytest.raises(DpotoolError, match=r"lm_head\.weight"):
        trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=["lm_head.weight"], unexpected_keys=[]))


def test_remote_code_is_for_the_command_line_to_allow(
    settings: dict[str, Any], interrupt_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(1)
    folder = train(TrainConfig(**settings)).folder
    manifest = folder.read_manifest()
    folder.write_manifest(manifest | {"config": manifest["config"] | {"trust_remote_code": True}})
    config, _ = reopen(TrainConfig(output=settings["output"], resume=True))
    assert config.trust_remote_code is False
    config, _ = reopen(TrainConfig(output=settings["output"], resume=True, trust_remote_code=True))
    assert config.trust_remote_code is True


def test_a_full_disk_costs_no_earlier_checkpoint(
    run: Run, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def full(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" in str(path):
            raise RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file")
        real(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DpotoolError, match=r"checkpoint of step 2 cannot be saved \(.*\); checkpoint-1, saved before"):
        run(save_steps=1)
    folder = RunFolder(Path(settings["output"]))
    assert folder.read_manifest()["status"] == "failed"
    assert [path.name for path in folder.path.glob("checkpoint-*")] == ["checkpoint-1"]
    monkeypatch.undo()
    assert train(TrainConfig(output=settings["output"], resume=True)).folder.read_manifest()["status"] == "finished"


@pytest.mark.parametrize("resumes", [False, True])
def test_a_folder_in_which_another_process_trains_is_left_to_it(settings: dict[str, Any], resumes: bool) -> None:
    folder = Path(settings["output"])
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    RunFolder(folder).write_manifest(collect_manifest("train", settings))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(DpotoolError, match=rf"at work in this folder \(train, process {process.pid} on "):
            train(TrainConfig(output=str(folder), resume=True) if resumes else TrainConfig(**settings))
        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before
    finally:
        process.kill()
        process.communicate()


def test_resuming_with_other_settings_is_an_error(
    settings: dict[str, Any], interrupt_after: Callable[[int], None]
) -> None:
    interrupt_after(1)
    train(TrainConfig(**settings))
    with pytest.raises(
        DpotoolError, match=r"--beta: a run is resumed with the settings it began with; expected 0.1, got 0.5"
    ):
        train(TrainConfig(output=settings["output"], resume=True, beta=0.5))
    folder = RunFolder(Path(settings["output"]))
    folder.update_manifest(config=folder.read_manifest()["config"] | {"device": 1.5})
    with pytest.raises(DpotoolError, match=r"run.yaml: config.device: is not what it has to be; expected text, got"):
        train(TrainConfig(output=settings["output"], resume=True))


def test_resuming_a_finished_run_changes_nothing(run: Run, settings: dict[str, Any]) -> None:
    folder = run()
    before = read_weights(folder.path)
    train(TrainConfig(output=settings["output"], resume=True))
    assert all(torch.equal(weight, before[name]) for name, weight in read_weights(folder.path).items())


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DpotoolError, match="--output"):
        train(TrainConfig(resume=True))
    with pytest.raises(DpotoolError, match=r"not a run folder, it has no run.yaml"):
        train(TrainConfig(resume=True, output=str(tmp_path)))


def test_checkpoints_asked_for_by_step_stay(run: Run) -> None:
    folder = run(save_at="1,2")
    assert {path.name for path in folder.path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}


def test_checkpoints_are_kept_every_n_steps(run: Run) -> None:
    folder = run(save_steps=2, epochs=2.0)
    assert {path.name for path in folder.path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}


def test_a_repetition_is_not_a_resumption(run: Run, tmp_path: Path) -> None:
    config = TrainConfig.read(run().read_manifest()["config"])
    assert config.output is None
    assert not replace(config, output=str(tmp_path / "x")).resume


def test_a_kill_while_tidying_leaves_a_finished_run(
    run: Run, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints that guard against an interruption go last: without them an unfinished run would be lost."""

    def kill(*_args: Any, **_kwargs: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(training_run, "_remove_rolling_checkpoints", kill)
    with pytest.raises(SystemExit):
        run()
    folder = RunFolder(Path(settings["output"]))
    assert folder.read_manifest()["status"] == "finished" and read_weights(folder.path)
