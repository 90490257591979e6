"""Training with shared prompts: the same run as with paired rows, and paired rows where sharing would change it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_pairs
from model_families import build_family
from training_helpers import read_weights, training_rows

from dpotool.errors import DpotoolError
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood.batch import SharedBatch
from dpotool.likelihood.layout import RowLayout, draws_in_training
from dpotool.runs.folder import RunFolder
from dpotool.training.dataset import PairCollator, PairDataset, read_batch

Run = Callable[..., RunFolder]


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"batch_size": 4, "gradient_accumulation": 2},
        {"loss": "sft"},
        {"lora": True, "lora_r": 2},
    ],
    ids=["plain", "accumulated", "sft", "lora"],
)
def test_a_run_is_the_same_in_both_layouts(run: Run, tmp_path: Path, settings_: dict[str, Any]) -> None:
    if "lora" in settings_:
        pytest.importorskip("peft", reason="LoRA needs peft (dpotool[peft])")
    with EverythingInFloat64():
        shared, paired = (
            run(layout=layout, dtype="float64", output=str(tmp_path / layout), **settings_)
            for layout in ("shared", "paired")
        )
    assert shared.read_manifest()["layouts"] == {"shared": 24, "paired": 0}
    assert paired.read_manifest()["layouts"] == {"shared": 0, "paired": 24}
    expected = read_weights(paired.path)
    for name, weight in read_weights(shared.path).items():
        assert torch.allclose(weight, expected[name], rtol=1e-8, atol=1e-10), name
    for row, other in zip(training_rows(shared), training_rows(paired), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-9)


def test_gradient_checkpointing_changes_nothing(run: Run, tmp_path: Path) -> None:
    """The mask is there when a layer is computed again."""
    plain, saving = (
        read_weights(
            run(layout="shared", dtype="float64", gradient_checkpointing=on, output=str(tmp_path / str(on))).path
        )
        for on in (False, True)
    )
    assert all(torch.allclose(plain[name], saving[name], rtol=1e-9, atol=1e-12) for name in plain)


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        ({"monitor_theory": True}, "tells completions apart"),
        ({"lora": True, "lora_dropout": 0.1}, "dropout is on"),
    ],
)
def test_what_needs_rows_of_their_own_gets_them(
    run: Run, settings_: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "lora" in settings_:
        pytest.importorskip("peft", reason="LoRA needs peft (dpotool[peft])")
    notes: list[str] = []
    monkeypatch.setattr("dpotool.progress.Progress.note", lambda _self, text: notes.append(text))
    folder = run(layout="shared", max_steps=1, **settings_)
    assert folder.read_manifest()["layouts"] == {"shared": 0, "paired": 8}
    assert sum(said in note for note in notes) == 1


def test_dropout_is_noticed_and_the_draws_stay_as_they_were() -> None:
    """Dropout that no module shows, as attention functions take it, is seen by what it does."""
    model = build_family("llama").float()
    assert not draws_in_training(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert draws_in_training(model)
    assert torch.equal(torch.rand(3), expected) and not model.training


def test_a_micro_batch_holds_its_rows_and_its_pairs_in_order() -> None:
    pairs = make_pairs(5)
    layout = RowLayout.of(build_family("llama"), "shared")
    dataset = PairDataset(pairs)
    inputs = PairCollator(layout)([dataset[index] for index in (3, 0, 4)])
    batch = read_batch(inputs)
    assert isinstance(batch, SharedBatch) and batch.n_completions == 6
    expected = [len(ids) for index in (3, 0, 4) for ids in (pairs[index].chosen_ids, pairs[index].rejected_ids)]
    assert batch.completion_tokens.tolist() == expected
    assert inputs["chosen_tokens"].tolist() == expected[::2]


def test_an_unknown_layout_is_refused(run: Run) -> None:
    with pytest.raises(DpotoolError, match="--layout: unknown layout"):
        run(layout="packed")
