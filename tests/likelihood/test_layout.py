"""Shared and paired rows give the same numbers and gradients, and the choice between them follows the lengths.

Models that cannot share a prompt are recognised by trying, and are scored in paired rows all the same.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from model_families import FAMILIES, build_family
from torch import Tensor, nn
from transformers import AttentionInterface, MambaConfig, MambaForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood import layout
from dpotool.likelihood.batch import CompletionBatch, SharedBatch, collate_pairs, collate_shared
from dpotool.likelihood.budget import estimate_bytes_per_token
from dpotool.likelihood.completions import compute_completion_logps, compute_completion_states, compute_token_logps
from dpotool.likelihood.layout import RowLayout, find_row_limit
from dpotool.likelihood.pair_logps import compute_pair_logps

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


PROBED_PAIRS = make_pairs(6)
CANNOT = {"gemma2", "gemma3", "mistral", "bloom"}
"""Windows of 4 or 5 tokens, and alibi."""


def build_recurrent() -> PreTrainedModel:
    """A model that carries a state from token to token: rejected would go on from chosen's last one."""
    model = build_family("llama")

    def carry(_module: Any, _inputs: Any, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]

    model.model.layers[0].register_forward_hook(carry)
    return model


def build_mamba() -> PreTrainedModel:
    """Knows neither masks nor positions."""
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8)).eval()


def build_deaf() -> PreTrainedModel:
    """Attention that takes no mask and is causal whatever it is told."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)

    AttentionInterface.register("deaf", attend)
    model = build_family("llama")
    model.config._attn_implementation = "deaf"
    return model


def score(model: PreTrainedModel, layout: str) -> list[float]:
    scored = compute_pair_logps(model, PROBED_PAIRS, layout=layout)
    return [*scored.chosen.tolist(), *scored.rejected.tolist()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_which_families_can(family: str, dtype: torch.dtype) -> None:
    limit = find_row_limit(build_family(family, dtype=dtype))
    assert limit == (0 if family in CANNOT else 128)


def build_bloom() -> PreTrainedModel:
    return build_family("bloom")


WRONG = {"recurrent": build_recurrent, "deaf": build_deaf}
"""Models that would take a shared row and compute something else."""
REFUSING = {"mamba": build_mamba, "bloom": build_bloom}


@pytest.mark.parametrize("build", [*WRONG.values(), *REFUSING.values()], ids=[*WRONG, *REFUSING])
def test_those_that_cannot_fall_back(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the check they give the numbers of paired rows; made to believe it passed, others or none."""
    expected = score(build(), "paired")
    assert score(build(), "shared") == expected
    monkeypatch.setattr(layout, "_check_sharing", lambda _model: True)
    if build in REFUSING.values():
        with pytest.raises((RuntimeError, ValueError)):
            score(build(), "shared")
    else:
        assert score(build(), "shared") != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("build", WRONG.values(), ids=WRONG)
def test_they_are_found_out_in_every_type(build: Any, dtype: torch.dtype) -> None:
    assert find_row_limit(build().to(dtype)) == 0


def test_tf32_is_not_taken_for_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounding is above the tolerance of a float32 model, so the layouts are compared without it."""
    seen: list[str] = []

    def compute(*arguments: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return compute_completion_states(*arguments)

    monkeypatch.setattr(layout, "compute_completion_states", compute)
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert find_row_limit(build_family("llama", dtype=torch.float32)) == 128
    finally:
        torch.set_float32_matmul_precision(kept)
    assert seen == ["ieee"] * 3


def test_rows_stay_within_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 50: longer than the probe, shorter than the longer pairs' rows, whose window a mask would undo."""
    pairs = make_pairs(8, longest=40)
    longest = max(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)

    def score_windowed(layout: str) -> tuple[list[float], int]:
        model = build_family("mistral")
        model.config.sliding_window = 50
        scored = compute_pair_logps(model, pairs, layout=layout)
        return scored.rejected.tolist(), scored.n_shared

    expected, _ = score_windowed("paired")
    got, n_shared = score_windowed("shared")
    assert got == pytest.approx(expected, rel=1e-12)
    assert 0 < n_shared < len(pairs) and longest > 50
    monkeypatch.setattr(layout, "_read_spans", lambda _model: [])
    assert score_windowed("shared")[0] != pytest.approx(expected, rel=1e-6)


def test_settings_that_are_no_window_limit_nothing() -> None:
    model = build_family("qwen2")
    assert model.config.max_window_layers == 28
    assert find_row_limit(model) == 128


def test_said_once_and_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    model = build_family("bloom").train()
    with caplog.at_level(logging.WARNING):
        assert [find_row_limit(model) for _ in range(3)] == [0, 0, 0]
    assert [record.message for record in caplog.records] == [
        "BloomForCausalLM: chosen and rejected cannot share a prompt here; each gets a row of its own"
    ]
    assert model.training


@pytest.mark.parametrize("name", ["index_topk", "keep_window_size", "sliding_window"])
def test_no_shared_row_is_longer_than_what_attention_picks_or_spans(name: str) -> None:
    """The probe's short pairs cannot see what begins beyond k tokens; the configuration says where that is."""
    model = build_family("llama")
    setattr(model.config, name, 40)
    assert find_row_limit(model) == 40
