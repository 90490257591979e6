"""Every loss trains, and LD-DPO's is computed from the same forward pass as all others'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from training_helpers import training_rows

from dpotool.likelihood.completions import TokenLogps
from dpotool.losses.registry import LOSSES
from dpotool.runs.folder import RunFolder

Run = Callable[..., RunFolder]


def test_first_tokens_of_each_completion_by_hand() -> None:
    """Completions of 3, 1 and 2 tokens; the first 2, 1 and 1 of them: -1 - 2, -4, -5."""
    tokens = TokenLogps(
        torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]), torch.tensor([0, 0, 0, 1, 2, 2]), torch.arange(6)
    )
    assert tokens.sum_first_by_row(torch.tensor([2, 1, 1])).tolist() == [-3.0, -4.0, -5.0]
    assert tokens.sum_first_by_row(torch.tensor([9, 9, 9])).tolist() == tokens.sum_by_row(3).tolist()


@pytest.mark.parametrize("layout", ["paired", "shared"])
def test_ld_dpo_starts_at_log_2_and_is_dpo_at_alpha_1(run: Run, tmp_path: Any, layout: str) -> None:
    """Before the first step every log-ratio is 0; afterwards alpha decides, and at 1 nothing is left to tell apart."""
    settings: dict[str, dict[str, Any]] = {
        "dpo": {"loss": "dpo"},
        "same": {"loss": "ld-dpo", "loss_options": {"alpha": 1.0}},
        "other": {"loss": "ld-dpo", "loss_options": {"alpha": 0.0}},
    }
    folders = {name: run(output=str(tmp_path / name), layout=layout, **given) for name, given in settings.items()}
    steps = {name: [row["loss"] for row in training_rows(folder)] for name, folder in folders.items()}
    held_out = {
        name: [row["eval_loss"] for row in folder.read_metrics() if "eval_loss" in row]
        for name, folder in folders.items()
    }
    for losses in (steps, held_out):
        assert losses["other"][0] == pytest.approx(0.693147, abs=1e-4)
        assert losses["same"] == pytest.approx(losses["dpo"], abs=1e-5)
        assert losses["other"][-1] != pytest.approx(losses["dpo"][-1], abs=1e-4)


@pytest.mark.parametrize("name", sorted(name for name, spec in LOSSES.items() if "scores" not in spec.needs))
def test_every_loss_trains(run: Run, name: str) -> None:
    folder = run(loss=name, max_steps=1)
    manifest = folder.read_manifest()
    assert manifest["status"] == "finished" and manifest["config"]["loss"] == name
    for option in LOSSES[name].options:
        assert manifest["config"][option.name] == option.default
