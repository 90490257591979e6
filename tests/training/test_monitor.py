"""`--monitor-theory`: what it logs, and that it changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from training_helpers import read_weights, training_rows

from dpotool.errors import DpotoolError
from dpotool.runs.folder import RunFolder

Run = Callable[..., RunFolder]


@pytest.mark.parametrize("gradient_accumulation", [1, 2])
def test_rows_carry_the_theory_and_the_weights_are_the_same(run: Run, gradient_accumulation: int) -> None:
    accumulation: dict[str, Any] = {"gradient_accumulation": gradient_accumulation}
    watched = run(monitor_theory=True, **accumulation)
    plain = run(output=f"{watched.path}-plain", **accumulation)
    rows = training_rows(watched)
    assert rows and all(row["theory/n_saturated"] == 0 for row in rows)
    for row, other in zip(rows, training_rows(plain), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["theory/chosen_grad_norm"] > 0 and 0 <= row["theory/u_positive"] <= 1
        cases = ("both_down", "both_up", "chosen_up_rejected_down", "unmoved")
        assert sum(row[f"theory/{case}"] for case in cases) == pytest.approx(1)
    expected = read_weights(plain.path)
    for name, weight in read_weights(watched.path).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


def test_the_first_step_is_what_theory_gap_says_of_its_pairs(run: Run, settings: dict[str, Any]) -> None:
    """All 24 pairs in one step: its means are those of the theory table at the start."""
    from dpotool.gradients.run import run_theory
    from dpotool.settings.scoring import TheoryConfig

    (row,) = training_rows(run(monitor_theory=True, batch_size=24, max_steps=1))
    given = {name: settings[name] for name in ("model", "data", "test_fraction")}
    config = TheoryConfig(**given, split="train", output=settings["output"] + "-theory", pairs_only=True)
    frame = run_theory(config).frame
    assert row["theory/u"] == pytest.approx(frame["u"].mean(), rel=1e-4)
    assert row["theory/v"] == pytest.approx(frame["v"].mean(), rel=1e-4)
    assert row["theory/v_negative"] == pytest.approx((frame["v"] < 0).mean())


def test_an_adapter_is_watched_too(run: Run) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft (dpotool[peft])")
    rows = training_rows(run(monitor_theory=True, lora=True, lora_r=2))
    assert rows
    assert all(row["theory/chosen_grad_norm"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "sft"}, "--monitor-theory: loss 'sft' does not weigh two whole completions"),
        ({"gradient_checkpointing": True}, "--monitor-theory: a backward pass that recomputes activations"),
    ],
)
def test_what_cannot_be_watched_is_refused(run: Run, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DpotoolError) as error:
        run(monitor_theory=True, **changes)
    assert str(error.value).startswith(message)
