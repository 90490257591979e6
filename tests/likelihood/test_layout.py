"""Shared and paired rows give the same numbers and gradients, and the choice between them follows the lengths."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from conftest import make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from model_families import FAMILIES, build_family
from torch import Tensor, nn
from transformers import PreTrainedConfig

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood.batch import CompletionBatch, collate_pairs
from dpotool.likelihood.budget import estimate_bytes_per_token
from dpotool.likelihood.completions import compute_completion_logps, compute_token_logps
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.shared_rows import SharedBatch, collate_shared

PAIRS = make_pairs(7)
CAN = [family for family in FAMILIES if family not in ("gemma2", "gemma3", "mistral", "bloom")]
WINDOWED = {"gemma2": 40, "gemma3": 40, "mistral": 40}


def build(family: str) -> nn.Module:
    """A family; those with windows get one that holds every row here."""
    model = build_family(family)
    for layer in model.modules():
        if getattr(layer, "sliding_window", None):
            layer.sliding_window = WINDOWED[family]
    if family in WINDOWED:
        model.config.sliding_window = WINDOWED[family]
    return model


def dpo_gradients(model: nn.Module, batch: CompletionBatch | SharedBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradient of every weight under a DPO loss with references of -10."""
    model.zero_grad()
    logps = compute_completion_logps(model, batch)
    ratios = logps + 10
    (-nn.functional.logsigmoid(0.1 * (ratios[0::2] - ratios[1::2]))).sum().backward()
    return logps.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*CAN, *WINDOWED])
def test_values_and_gradients_are_those_of_paired_rows(family: str, attention: str) -> None:
    model = build(family)
    model.config._attn_implementation = attention if family != "gemma2" else "eager"
    with EverythingInFloat64():  # norms and eager attention's soft-max would else be in float32
        logps, grads = dpo_gradients(model, collate_shared(PAIRS))
        expected_logps, expected = dpo_gradients(model, collate_pairs(PAIRS))
    assert torch.allclose(logps, expected_logps, rtol=1e-12, atol=0)
    assert grads.keys() == expected.keys() and len(grads) > 10
    scale = max(float(grad.norm()) for grad in expected.values())
    for name, grad in grads.items():  # a key's bias has a gradient of zero: rounding is measured against the largest
        assert (grad - expected[name]).norm() <= 1e-12 * scale, name


def test_tokens_come_in_the_same_order() -> None:
    model = build("llama")
    shared, paired = (compute_token_logps(model, collate(PAIRS)) for collate in (collate_shared, collate_pairs))
    assert torch.equal(shared.token_ids, paired.token_ids) and torch.equal(shared.rows, paired.rows)
    assert torch.allclose(shared.logps, paired.logps, rtol=1e-12)


def test_full_logits_path_takes_shared_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    expected = compute_completion_logps(model, collate_pairs(PAIRS))
    monkeypatch.setattr("dpotool.likelihood.completions.can_split_head", lambda _model: False)
    assert torch.allclose(compute_completion_logps(model, collate_shared(PAIRS)), expected, rtol=1e-12)


def test_mixed_precision_is_as_near_as_paired_rows_are() -> None:
    model = build_family("llama").float()
    exact = compute_pair_logps(model, PAIRS, layout="paired").chosen
    with_autocast = {
        layout: compute_pair_logps(model, PAIRS, layout=layout, autocast=torch.bfloat16).chosen
        for layout in ("shared", "paired")
    }
    noise = np.abs(with_autocast["paired"] - exact).max()
    assert np.abs(with_autocast["shared"] - exact).max() <= 2 * noise
    assert noise > 1e-4


MODEL = build_family("llama")
EXPECTED = compute_pair_logps(MODEL, PAIRS, batch_tokens=1, layout="paired")


@settings(max_examples=30, deadline=None)
@given(
    budget=st.integers(1, 600),
    seed=st.integers(0, 99),
    n=st.integers(1, len(PAIRS)),
    layout=st.sampled_from(["auto", "shared", "paired"]),
)
def test_scores_depend_on_neither_layout_nor_batch_nor_order(budget: int, seed: int, n: int, layout: str) -> None:
    chosen = random.Random(seed).sample(range(len(PAIRS)), n)
    got = compute_pair_logps(MODEL, [PAIRS[index] for index in chosen], batch_tokens=budget, layout=layout)
    np.testing.assert_allclose(got.chosen, EXPECTED.chosen[chosen], rtol=1e-12)
    np.testing.assert_allclose(got.rejected, EXPECTED.rejected[chosen], rtol=1e-12)


@pytest.mark.parametrize(
    "family", ["gemma2", "gemma3", "gpt2", "gpt-neox", "mistral", "bloom", "opt", "falcon", "mixtral", "qwen3-moe"]
)
def test_neither_do_those_of_other_families(family: str) -> None:
    """Windows as short as they come, alibi, experts and positions learned: one pair a batch against all the rest."""
    model, backwards = build_family(family), PAIRS[::-1]
    with EverythingInFloat64():
        alone = compute_pair_logps(model, PAIRS, batch_tokens=1, layout="paired")
        for budget, layout in ((70, "auto"), (200, "paired"), (10_000, "shared")):
            got = compute_pair_logps(model, backwards, batch_tokens=budget, layout=layout)
            np.testing.assert_allclose(got.chosen[::-1], alone.chosen, rtol=1e-12)
            np.testing.assert_allclose(got.rejected[::-1], alone.rejected, rtol=1e-12)


@pytest.mark.parametrize("layout", ["auto", "paired"])
def test_a_configuration_with_a_name_of_its_own_for_the_width_will_do(layout: str) -> None:
    """As of a checkpoint with its own code: width 32, feed-forward taken for four times that."""
    model = build_family("llama")
    model.config = PreTrainedConfig(d_model=32, vocab_size=97)
    assert RowLayout.of(model, layout).hidden_size == 32
    assert estimate_bytes_per_token(model) == 8 * (8 * 32 + 4 * 4 * 32) + 8 * 32
    got = compute_pair_logps(model, PAIRS, layout=layout, batch_tokens="auto")
    np.testing.assert_allclose(got.chosen, EXPECTED.chosen, rtol=1e-12)


def make_pair(prompt: int, chosen: int, rejected: int) -> TokenizedPair:
    return TokenizedPair(0, (1,) * prompt, (3,) * chosen, (4,) * rejected)


def test_long_prompts_are_shared_and_short_ones_are_not() -> None:
    """Hidden size 32. 60 + 10 + 10 tokens: 80 (1 + 0.4 * 80/32) = 160 against 140 (1 + 0.3 * 70/32) = 232;
    2 + 30 + 30: 62 (1 + 0.4 * 62/32) = 110 against 64 (1 + 0.3 * 32/32) = 83."""
    layout = RowLayout.of(MODEL)
    assert layout.shares(make_pair(60, 10, 10))
    assert not layout.shares(make_pair(2, 30, 30))
    assert RowLayout.of(MODEL, "shared").shares(make_pair(2, 30, 30))
    assert not RowLayout.of(MODEL, "paired").shares(make_pair(60, 10, 10))


def test_a_plan_keeps_to_its_budget_and_mixes_no_layouts() -> None:
    pairs = [make_pair(60, 10, 10), make_pair(2, 30, 30)] * 4
    layout = RowLayout.of(MODEL)
    plan = layout.plan(pairs, 200)
    assert sorted(index for batch in plan for index in batch) == list(range(8))
    batches = [layout.collate([pairs[index] for index in batch]) for batch in plan]
    assert {type(batch) for batch in batches} == {SharedBatch, CompletionBatch}
    assert all(batch.input_ids.numel() <= 200 for batch in batches)
    assert compute_pair_logps(MODEL, pairs).n_shared == 4


def test_a_step_is_packed_and_gets_one_layout() -> None:
    step = RowLayout.of(MODEL).collate_step([make_pair(60, 10, 10), make_pair(20, 10, 10), make_pair(20, 10, 9)])
    assert isinstance(step, SharedBatch) and step.input_ids.shape == (2, 80)
    assert isinstance(RowLayout.of(MODEL).collate_step([make_pair(2, 30, 30)] * 2), CompletionBatch)
    alone = RowLayout.of(MODEL, "shared").collate_step([make_pair(20, 20, 5)] * 2, with_rejected=False)
    assert alone.n_completions == 2 and alone.input_ids.shape == (2, 40)
