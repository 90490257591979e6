"""The fast engine against autograd, one pair at a time: every family, number type, selection and kind of pair."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_pairs
from gradients.engine_checks import assert_equals_slow_truth, find_errors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_families import FAMILIES, VOCAB_SIZE, build_family, build_small
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.engine import GradientEngine, compute_fast_products
from dpotool.gradients.ghost import audit, layout, outer, passes, taps
from dpotool.gradients.products import collect_products, compute_gradient_products
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood import completions

EXPERTS = {"mixtral", "qwen3-moe"}
CASTS_TO_FLOAT32 = {"gemma2": 1e-6, "gemma3": 1e-8, "cohere": 1e-8, "bloom": 1e-8}
"""Families whose float64 models compute partly in float32, where autograd and the engine round differently."""


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_autograd_in_float64(family: str):
    fallback = assert_equals_slow_truth(
        build_family(family), make_pairs(5), tolerance=CASTS_TO_FLOAT32.get(family, 1e-12)
    )
    assert all(".experts." in name for name in fallback)
    assert bool(fallback) == (family in EXPERTS)


@pytest.mark.parametrize("family", CASTS_TO_FLOAT32)
def test_equals_autograd_to_the_last_digits_without_float32_inside(family: str):
    with EverythingInFloat64():
        assert_equals_slow_truth(build_family(family), make_pairs(5), tolerance=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_autograd_in_float32(family: str):
    assert_equals_slow_truth(build_family(family, dtype=torch.float32), make_pairs(5), tolerance=1e-5)


@pytest.mark.parametrize("family", ["llama-tied-biased", "qwen3", "gemma3", "gpt2", "cohere", "falcon"])
def test_bfloat16_weights(family: str):
    """Autograd rounds whole gradients to bfloat16 (8 bits), the engine only what flows between layers."""
    assert_equals_slow_truth(build_family(family, dtype=torch.bfloat16), make_pairs(5), tolerance=2e-2)


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gemma3"])
def test_products_of_bfloat16_factors_are_not_rounded_to_bfloat16(family: str):
    """A float64 model fed the same rounded weights lies within rounding of activations, far below 2^-8 in the sums."""
    coarse = build_family(family, dtype=torch.bfloat16)
    exact = copy.deepcopy(coarse).double()
    pairs = make_pairs(3)
    fast, _ = compute_fast_products(coarse, pairs)
    errors = find_errors(fast, compute_gradient_products(exact, pairs))
    slow_errors = find_errors(compute_gradient_products(coarse, pairs), compute_gradient_products(exact, pairs))
    assert max(errors.values()) <= 1.5 * max(slow_errors.values())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_attention_implementations(family: str, implementation: str):
    model = build_family(family)
    model.set_attn_implementation(implementation)
    with EverythingInFloat64():  # eager attention takes its soft-max in float32
        assert_equals_slow_truth(model, make_pairs(4), tolerance=1e-12)


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt2", "opt"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(family: str):
    """OLMo-2 multiplies a layer's very input, which must not be mistaken for another layer's when it comes again."""
    model, pairs = build_family(family), make_pairs(4)
    expected, _ = compute_fast_products(model, pairs)
    model.gradient_checkpointing_enable()
    layer = model.get_decoder().get_submodule("h" if family == "gpt2" else "layers")[0]
    attention, calls = (layer.attn if family == "gpt2" else layer.self_attn), []
    attention.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    got, _ = compute_fast_products(model, pairs)
    assert len(calls) == 3, "once when the model is looked at, once forward, once again on the way back"
    assert max(find_errors(got, expected).values()) <= 1e-12
    assert_equals_slow_truth(model, pairs, tolerance=1e-12)


ids = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=9).map(tuple)
random_pairs = st.lists(st.builds(TokenizedPair, st.integers(0, 10**6), ids, ids, ids), min_size=1, max_size=5)
MODELS = {family: build_family(family) for family in ("llama-tied-biased", "gpt2", "falcon")}


def work_in_small_pieces(monkeypatch: pytest.MonkeyPatch, *, tile: int, block: int, alignment: int) -> None:
    """Brings short rows to the paths that long ones take: tiles, blocks, shared prompts, linear layers row by row."""
    monkeypatch.setattr(outer, "TILE", tile)
    monkeypatch.setattr(outer, "BLOCK_ELEMENTS", block)
    for module in (layout, taps):
        monkeypatch.setattr(module, "ALIGNMENT", alignment)
    monkeypatch.setattr(taps, "SMALLEST_ROWS", 1)
    monkeypatch.setattr(taps, "LARGEST_SHARE", 0.9)


@pytest.mark.parametrize("family", MODELS)
@given(
    pairs=random_pairs,
    batch_tokens=st.integers(1, 120),
    tile=st.integers(1, 12),
    block=st.integers(1, 400),
    alignment=st.sampled_from([1, 2, 16]),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths_and_batches(
    family: str,
    pairs: list[TokenizedPair],
    batch_tokens: int,
    tile: int,
    block: int,
    alignment: int,
    monkeypatch: pytest.MonkeyPatch,
):
    work_in_small_pieces(monkeypatch, tile=tile, block=block, alignment=alignment)
    assert_equals_slow_truth(MODELS[family], pairs, tolerance=1e-11, batch_tokens=batch_tokens)


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gemma2", "gpt2", "falcon", "opt", "qwen3-moe"])
def test_linear_layers_row_by_row(family: str, monkeypatch: pytest.MonkeyPatch):
    """As for long rows: the prompt once, no padding, and behind the last attention only completion tokens."""
    work_in_small_pieces(monkeypatch, tile=4, block=100, alignment=1)
    rows: list[object] = []
    apply = taps.apply_linear
    monkeypatch.setattr(taps, "apply_linear", lambda *args: rows.append(args) or apply(*args))
    with EverythingInFloat64():
        assert_equals_slow_truth(build_family(family), make_pairs(5), tolerance=1e-12)
    assert rows, "the path was taken"


@pytest.mark.parametrize("is_gram_cheaper", [True, False])
@pytest.mark.parametrize("family", ["llama-tied-biased", "gpt2", "falcon", "qwen3"])
def test_both_ways_of_taking_outer_products(family: str, is_gram_cheaper: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outer.SharedInput, "is_gram_cheaper", lambda *_: is_gram_cheaper)
    monkeypatch.setattr(outer, "TILE", 4)
    monkeypatch.setattr(outer, "BLOCK_ELEMENTS", 100)
    assert_equals_slow_truth(build_family(family), make_pairs(5), tolerance=1e-12)


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gemma2"])
def test_the_output_layer_in_portions_of_whole_pairs(family: str, monkeypatch: pytest.MonkeyPatch):
    model, pairs = build_family(family), make_pairs(5)
    whole, _ = compute_fast_products(model, pairs)
    monkeypatch.setattr(passes, "PORTION_ELEMENTS", 20 * VOCAB_SIZE)
    portions, _ = compute_fast_products(model, pairs)
    assert max(find_errors(portions, whole).values()) <= 1e-12


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gpt2"])
def test_a_model_whose_output_layer_does_not_come_apart(family: str, monkeypatch: pytest.MonkeyPatch):
    keep_output_layer(monkeypatch)
    assert_equals_slow_truth(build_family(family), make_pairs(4), tolerance=1e-12)


def keep_output_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (completions, audit, passes):
        monkeypatch.setattr(module, "can_split_head", lambda _: False)


@pytest.mark.parametrize("comes_apart", [True, False])
@pytest.mark.parametrize("family", ["qwen3", "llama-tied-biased", "gpt2"])
def test_spans_that_hold_all_pairs_as_on_a_gpu(family: str, comes_apart: bool, monkeypatch: pytest.MonkeyPatch):
    if not comes_apart:
        keep_output_layer(monkeypatch)
    engine, pairs = GradientEngine(build_family(family)), make_pairs(5)
    engine.takes_pairs_together = True
    (together,) = engine.iter_products(pairs, batch_tokens=1000)
    slow = compute_gradient_products(engine.model, pairs)
    assert max(find_errors(collect_products(together[place] for place in range(5)), slow).values()) <= 1e-12


def test_a_padding_token_in_the_text_has_no_embedding_gradient():
    """torch gives the row `padding_idx` none, and neither may the engine: token 0 here, tied and not."""
    pairs = [TokenizedPair(0, (1, 0, 5, 0), (0, 6, 2), (7, 0, 0, 2))]
    for family in ("llama", "llama-tied-biased"):
        model = build_family(family)
        assert model.get_input_embeddings().padding_idx == 0
        assert_equals_slow_truth(model, pairs, tolerance=1e-12)


def test_identical_completions_are_equal_to_the_last_digit():
    pairs = [TokenizedPair(0, (1, 5), (6, 7, 2), (6, 7, 2)), *make_pairs(2)]
    fast, _ = compute_fast_products(build_family("llama", dtype=torch.float32), pairs)
    assert fast.grad_inner_product[0] == fast.chosen_grad_sq_norm[0] == fast.rejected_grad_sq_norm[0] > 0
    assert (fast.grad_inner_product[1:] != fast.chosen_grad_sq_norm[1:]).all()


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_lora_adapters(targets: object):
    model = add_adapter(build_family("llama"), target_modules=targets)
    assert assert_equals_slow_truth(model, make_pairs(4), tolerance=1e-12) == ()
    report = GradientEngine(model, "lora").report
    assert report.parameters == "LoRA adapter"
    assert report.n_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.n_by_form == {"outer": report.n_parameters}


def test_what_an_adapter_does_beyond_linear_layers_goes_to_the_fallback():
    """DoRA takes the norm of W + BA, in which A and B stand by themselves."""
    model = add_adapter(build_family("llama"), target_modules=["q_proj"], use_dora=True)
    fallback = assert_equals_slow_truth(model, make_pairs(3), tolerance=1e-12)
    assert {name.split(".")[-3 if name.endswith("weight") else -2] for name in fallback} >= {"lora_A", "lora_B"}


def add_adapter(model: nn.Module, **settings: object) -> nn.Module:
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=0.1, task_type="CAUSAL_LM", **settings)
    model = get_peft_model(model, config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)  # LoRA starts with B = 0, where A has no gradient
    return model


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gpt2", "mixtral"])
@pytest.mark.parametrize("choice", ["last-1", "last-2", "head"])
def test_parts_of_the_model(family: str, choice: str):
    """Equal to the slow truth with everything else frozen, and the flags are left alone."""
    model, pairs = build_family(family), make_pairs(4)
    fast, report = compute_fast_products(model, pairs, parameters=choice)
    assert all(parameter.requires_grad for parameter in model.parameters())
    chosen = set(GradientEngine(model, choice).selection.parameters)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    slow = compute_gradient_products(model, pairs)
    assert max(find_errors(fast, slow).values()) <= 1e-12
    assert report.n_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert 0 < report.n_parameters < sum(parameter.numel() for parameter in model.parameters())


def test_frozen_parameters_do_not_count_and_unused_ones_count_as_zero():
    model, pairs = build_family("llama"), make_pairs(3)
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    model.model.embed_tokens.requires_grad_(False)
    assert assert_equals_slow_truth(model, pairs, tolerance=1e-12) == ("unused",)


class Tangled(nn.Module):
    """A layer whose weights are used in ways that look ordinary from outside."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.twice = nn.Linear(32, 32, dtype=torch.float64)
        self.borrowed = nn.Linear(32, 32, bias=False, dtype=torch.float64)
        self.penalised = nn.Linear(32, 32, bias=False, dtype=torch.float64)
        self.squared = nn.Parameter(torch.full((32,), 0.5, dtype=torch.float64))
        self.transposed = nn.Linear(32, 32, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(torch.tanh(self.twice(x)))
        x = x + F.linear(x, self.borrowed.weight) + self.borrowed(x)
        x = x + F.linear(x, self.penalised.weight) * self.penalised.weight.mean()
        x = x * self.squared**2
        return self.inner(self.transposed(x.transpose(0, 1)).transpose(0, 1))  # tokens lead, then rows


def test_unusual_uses_go_to_the_fallback_and_are_exact():
    model = build_family("llama")
    layer = model.model.layers[0].mlp
    layer.gate_proj = Tangled(layer.gate_proj)
    fallback = assert_equals_slow_truth(model, make_pairs(3), tolerance=1e-12)
    names = (
        "squared",
        "twice.weight",
        "twice.bias",
        "borrowed.weight",
        "penalised.weight",
        "transposed.weight",
    )
    assert fallback == tuple(f"model.layers.0.mlp.gate_proj.{name}" for name in names)


def test_every_parameter_is_claimed_once_or_named():
    for family in FAMILIES:
        engine = GradientEngine(build_family(family))
        claimed, left = list(engine.claims.forms), list(engine.claims.fallback)
        assert sorted(claimed + left) == sorted(name for name, _ in engine.model.named_parameters())
        assert sum(engine.report.n_by_form.values()) + sum(
            engine.selection.parameters[name].numel() for name in left
        ) == sum(parameter.numel() for parameter in engine.model.parameters())


def test_a_model_that_does_something_else_than_it_was_seen_to_do_is_an_error():
    model = build_family("llama")
    engine = GradientEngine(model)
    model.model.layers[0].mlp.forward = torch.zeros_like
    with pytest.raises(RuntimeError, match=r"layers\.0\..*: expected 2 gradients of pairs, got 0"):
        list(engine.iter_products(make_pairs(2)))


def test_the_model_is_left_as_it_was_and_dropout_is_off():
    model, pairs = build_family("gpt2"), make_pairs(3)
    expected, _ = compute_fast_products(model, pairs)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()
    model.transformer.h[0].eval()
    model.gradient_checkpointing_enable()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    attributes = [set(module.__dict__) for module in model.modules()]
    fast, _ = compute_fast_products(model, pairs)
    assert fast.grad_inner_product.tolist() == pytest.approx(expected.grad_inner_product.tolist(), rel=1e-12)
    assert [module.training for module in model.modules()] == modes
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_batches_come_longest_first_with_their_places():
    model, pairs, seen = build_family("llama"), make_pairs(6), []
    whole, _ = compute_fast_products(model, pairs, on_progress=seen.append)
    assert sum(seen) == 6
    batches = list(GradientEngine(model).iter_products(pairs, batch_tokens=1))
    assert [len(batch) for batch in batches] == [1] * 6
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(6)) and [pairs[place].longest for place in places] == sorted(
        (pair.longest for pair in pairs), reverse=True
    )
    for batch in batches:
        for place, products in batch.items():
            assert products.pair_id == pairs[place].pair_id
            assert products.chosen_grad_sq_norm == pytest.approx(whole.chosen_grad_sq_norm[place], rel=1e-12)


def test_no_pairs_give_empty_columns():
    products, report = compute_fast_products(build_family("llama"), [])
    assert products.pair_id.shape == products.chosen_logps.shape == (0,)
    assert report.fallback == ()


def test_swapping_the_pair_swaps_the_norms():
    model, pairs = build_family("llama"), make_pairs(4)
    there, _ = compute_fast_products(model, pairs)
    swapped = [replace(pair, chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids) for pair in pairs]
    back, _ = compute_fast_products(model, swapped)
    np.testing.assert_allclose(back.chosen_grad_sq_norm, there.rejected_grad_sq_norm, rtol=1e-12)
    np.testing.assert_allclose(back.grad_inner_product, there.grad_inner_product, rtol=1e-12)


def test_a_gradient_that_is_not_finite_names_its_row():
    model = build_family("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(torch.nan)
    with pytest.raises(DpotoolError, match="row 7: the gradient of this pair is not finite"):
        compute_fast_products(model, [replace(make_pairs(1)[0], pair_id=7)])


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama-tied-biased"])
def test_long_rows_in_one_operation_as_on_a_gpu(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer.SharedInput, "is_joint_gram_cheaper", lambda *_: True)
    assert_equals_slow_truth(build_family(family), make_pairs(5, longest=60), tolerance=1e-12)


def test_a_gpu_takes_blocks_only_where_rows_are_very_long() -> None:
    shared = outer.SharedInput(4096, n_outputs=14336)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [shared.is_joint_gram_cheaper(n_tokens, gpu) for n_tokens in (400, 1400, 8000)] == [True, True, False]
    assert [shared.is_joint_gram_cheaper(n_tokens, cpu) for n_tokens in (60, 400)] == [True, False]


@pytest.mark.parametrize("longest", [3, 30])
def test_attention_that_picks_the_best_tokens_is_left_to_autograd_where_rows_are_longer(longest: int) -> None:
    """Doge starts with all tokens equally good; which of them it picks depends on what stands behind them."""
    model = build_small("doge", {"keep_window_size": 8}, dtype=torch.float32)
    pairs = make_pairs(3, longest=longest)
    products, report = compute_fast_products(model, pairs)
    is_picked_from = max(pair.longest for pair in pairs) > 8
    assert is_picked_from == (longest == 30)
    assert (report.n_by_form == {}) == is_picked_from
    for name in ("chosen_logps", "rejected_logps", "grad_inner_product", "chosen_grad_sq_norm"):
        expected = getattr(compute_gradient_products(model, pairs), name)
        np.testing.assert_allclose(getattr(products, name), expected, rtol=1e-3, atol=1e-4)
