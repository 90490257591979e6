"""Gradient products against hand arithmetic, finite differences, and a separate gradient for every use of a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients import products as products_module
from dpotool.gradients.products import (
    collect_products,
    compute_gradient_products,
    iter_gradient_products,
)
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import compute_completion_logps


class TwoLogits(nn.Module):
    """A causal LM with two parameters: whatever stands before, the logits of tokens 0 and 1 are theta."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64))
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)

    def get_decoder(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> None:
        return None

    def get_input_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, **_kwargs: object) -> tuple[Tensor]:
        return (self.theta.expand(*input_ids.shape, 2),)


def test_two_parameters_by_hand():
    """theta = (0, log 3): probabilities p = (1/4, 3/4); the gradient of log p_k is e_k - p.

    Chosen (0, 0, 1): W = 2 e_0 + e_1 - 3 p = (2 - 3/4, 1 - 9/4) = (5/4, -5/4), logps = 2 log 1/4 + log 3/4.
    Rejected (1,):    L = e_1 - p = (-1/4, 1/4), logps = log 3/4.
    <W,L> = -10/16 = -5/8; ‖W‖² = 50/16 = 25/8; ‖L‖² = 2/16 = 1/8.
    """
    products = compute_gradient_products(TwoLogits(), [TokenizedPair(7, (1,), (0, 0, 1), (1,))])
    assert products.pair_id.tolist() == [7]
    assert products.grad_inner_product.tolist() == pytest.approx([-5 / 8])
    assert products.chosen_grad_sq_norm.tolist() == pytest.approx([25 / 8])
    assert products.rejected_grad_sq_norm.tolist() == pytest.approx([1 / 8])
    assert products.chosen_logps.tolist() == pytest.approx([2 * math.log(1 / 4) + math.log(3 / 4)])
    assert products.rejected_logps.tolist() == pytest.approx([math.log(3 / 4)])


@torch.no_grad()
def differentiate_numerically(model: nn.Module, pair: TokenizedPair, parameters: Iterable[Tensor]) -> Tensor:
    """Central differences of (chosen logps, rejected logps) by every element of the parameters: (2, elements)."""
    batch, step = collate_pairs([pair]), 1e-5
    columns = []
    for parameter in parameters:
        flat = parameter.view(-1)
        for index in range(flat.numel()):
            kept = flat[index].item()
            flat[index] = kept + step
            above = compute_completion_logps(model, batch)
            flat[index] = kept - step
            below = compute_completion_logps(model, batch)
            flat[index] = kept
            columns.append((above - below) / (2 * step))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("tied", [False, True])
def test_products_equal_finite_differences_over_every_weight(build_llama, tied: bool):
    model = build_llama(hidden=4, layers=1, tied=tied)
    pair = TokenizedPair(0, (5, 6), (7, 8, 9), (7, 11))
    W, L = differentiate_numerically(model, pair, model.parameters())
    products = compute_gradient_products(model, [pair])
    expected = [W @ L, W @ W, L @ L]
    got = [
        products.grad_inner_product,
        products.chosen_grad_sq_norm,
        products.rejected_grad_sq_norm,
    ]
    assert [value.item() for value in got] == pytest.approx([value.item() for value in expected], rel=1e-7)


def test_a_tied_weight_is_one_parameter_with_the_sum_of_both_gradients(build_llama, pairs):
    """Untied twin with equal weights: W = (W_in + W_out) on the shared matrix, so all four cross terms count."""
    tied, untied = build_llama(tied=True), build_llama(tied=False)
    untied.load_state_dict(tied.state_dict())
    products = compute_gradient_products(tied, pairs[:1])
    W, L = (
        dict(zip(names, torch.autograd.grad(logps, parameters, retain_graph=True), strict=True))
        for names, parameters in [zip(*untied.named_parameters(), strict=True)]
        for logps in compute_completion_logps(untied, collate_pairs(pairs[:1]))
    )
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    for gradient in (W, L):
        gradient[embedding] = gradient[embedding] + gradient.pop(head)
    assert products.grad_inner_product.item() == pytest.approx(sum((W[name] * L[name]).sum().item() for name in W))
    assert products.chosen_grad_sq_norm.item() == pytest.approx(sum(W[name].square().sum().item() for name in W))


def test_lora_counts_the_adapter_alone(build_llama, pairs):
    """The products are those of central differences over the adapter's elements, and its base model's have no part."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(build_llama(hidden=4, layers=1), config).double().eval()
    pair = pairs[0]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert 0 < sum(parameter.numel() for parameter in trained) < 100
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_()  # LoRA starts with B = 0, where A has no gradient
    W, L = differentiate_numerically(model, pair, trained)
    products = compute_gradient_products(model, [pair])
    assert products.grad_inner_product.item() == pytest.approx((W @ L).item(), rel=1e-7)
    assert products.chosen_grad_sq_norm.item() == pytest.approx((W @ W).item(), rel=1e-7)
    assert products.rejected_grad_sq_norm.item() == pytest.approx((L @ L).item(), rel=1e-7)


def test_products_obey_their_identities(build_llama, pairs):
    """Cauchy-Schwarz, and W = L for identical completions."""
    p = compute_gradient_products(build_llama(), pairs)
    assert (p.grad_inner_product**2 <= p.chosen_grad_sq_norm * p.rejected_grad_sq_norm * (1 + 1e-12)).all()
    assert p.grad_inner_product[-1] == p.chosen_grad_sq_norm[-1] == p.rejected_grad_sq_norm[-1] > 0
    assert (p.chosen_grad_sq_norm - 2 * p.grad_inner_product + p.rejected_grad_sq_norm)[:-1].min() > 0, "W is not L"


def test_swapping_the_pair_swaps_the_norms(build_llama, pairs):
    model = build_llama()
    swapped = [TokenizedPair(p.pair_id, p.prompt_ids, p.rejected_ids, p.chosen_ids) for p in pairs]
    there, back = compute_gradient_products(model, pairs), compute_gradient_products(model, swapped)
    np.testing.assert_allclose(back.chosen_grad_sq_norm, there.rejected_grad_sq_norm, rtol=1e-12)
    np.testing.assert_allclose(back.grad_inner_product, there.grad_inner_product, rtol=1e-12)


def test_chunks_do_not_change_the_sums(build_llama, pairs, monkeypatch):
    whole = compute_gradient_products(build_llama(), pairs)
    monkeypatch.setattr(products_module, "CHUNK_ELEMENTS", 7)
    chunked = compute_gradient_products(build_llama(), pairs)
    np.testing.assert_allclose(chunked.grad_inner_product, whole.grad_inner_product, rtol=1e-12)


def test_logps_are_those_of_the_likelihood_room(build_llama, pairs):
    model = build_llama()
    products = compute_gradient_products(model, pairs)
    with torch.no_grad():
        logps = compute_completion_logps(model, collate_pairs(pairs)).numpy()
    np.testing.assert_allclose(products.chosen_logps, logps[0::2], rtol=1e-12)
    np.testing.assert_allclose(products.rejected_logps, logps[1::2], rtol=1e-12)


def test_frozen_parameters_do_not_count_and_unused_ones_count_as_zero(build_llama, pairs):
    model = build_llama()
    all_of_them = compute_gradient_products(model, pairs[:1])
    model.register_parameter("unused", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    with_unused = compute_gradient_products(model, pairs[:1])
    assert with_unused.chosen_grad_sq_norm.tolist() == all_of_them.chosen_grad_sq_norm.tolist()
    model.lm_head.requires_grad_(False)
    without_head = compute_gradient_products(model, pairs[:1])
    assert 0 < without_head.chosen_grad_sq_norm.item() < all_of_them.chosen_grad_sq_norm.item()


def test_the_model_is_left_as_it_was_and_dropout_is_off(build_llama, pairs):
    model = build_llama()
    expected = compute_gradient_products(model, pairs[:2])
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    with torch.no_grad():  # a caller's habit that must not reach the gradients
        got = compute_gradient_products(model, pairs[:2])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    np.testing.assert_array_equal(got.grad_inner_product, expected.grad_inner_product)


def test_pairs_come_one_by_one_with_progress_and_can_be_kept_when_interrupted(build_llama, pairs):
    model, seen = build_llama(), []
    whole = compute_gradient_products(model, pairs, on_progress=seen.append)
    assert seen == [1] * len(pairs)
    iterator = iter_gradient_products(model, iter(pairs))
    partial = collect_products([next(iterator), next(iterator)])
    assert partial.pair_id.tolist() == [0, 10]
    np.testing.assert_array_equal(partial.grad_inner_product, whole.grad_inner_product[:2])


def test_no_pairs_give_empty_columns(build_llama):
    products = compute_gradient_products(build_llama(), [])
    assert products.pair_id.shape == products.chosen_logps.shape == (0,)


def test_sums_are_float64_whatever_the_gradients_are():
    """‖W‖² = 4096² + 1000 * 1² = 16778216, of which float32 may keep but 16777216; <W,L> = 4096 + 1000."""
    W = torch.cat([torch.tensor([4096.0]), torch.ones(1000)]).bfloat16()
    L = torch.ones(1001).bfloat16()
    expected = [5096.0, 4096.0**2 + 1000, 1001.0]
    assert products_module._compute_products([W], [L]) == expected
    assert products_module._compute_products([W[:1], None, W[1:]], [L[:1], None, L[1:]]) == expected
    assert products_module._compute_products([W, None], [None, L]) == [0.0, 4096.0**2 + 1000, 1001.0]


def test_bfloat16_models_work_and_show_what_rounding_costs(build_llama, pairs):
    """On this model ‖W‖² comes out up to 15 % off, which is why float32 is recommended."""
    exact = compute_gradient_products(build_llama(), pairs)
    coarse = compute_gradient_products(build_llama().bfloat16(), pairs)
    np.testing.assert_allclose(coarse.chosen_grad_sq_norm, exact.chosen_grad_sq_norm, rtol=0.3)
    assert not np.allclose(coarse.chosen_grad_sq_norm, exact.chosen_grad_sq_norm, rtol=0.01)


def test_a_model_without_trained_parameters_is_refused(build_llama, pairs):
    with pytest.raises(DpotoolError, match="no parameter of the model is trained, so there is no gradient"):
        compute_gradient_products(build_llama().requires_grad_(False), pairs)


def test_a_gradient_that_is_not_finite_names_its_row(build_llama, pairs):
    model = build_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(math.nan)
    with pytest.raises(DpotoolError, match="row 10: the gradient of this pair is not finite"):
        compute_gradient_products(model, pairs[1:])
