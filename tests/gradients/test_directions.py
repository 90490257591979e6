"""Predicted changes along a direction against each row's own gradient, finite differences, and the pair products."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import FAMILIES, build_family
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.directions import compute_directional_changes
from dpotool.gradients.engine import compute_fast_products
from dpotool.gradients.ghost import product_sums
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import compute_completion_logps

CASTS_TO_FLOAT32 = {"gemma2": 1e-6, "gemma3": 1e-7, "cohere": 1e-7, "bloom": 1e-7}
"""Families whose float64 models compute partly in float32."""


def draw_direction(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
        for name, parameter in model.named_parameters()
    }


def differentiate_rows(model: nn.Module, pairs: list[TokenizedPair], direction: dict[str, Tensor]) -> np.ndarray:
    """<grad log pi, D> of every row: (pairs, 2)."""
    parameters = [dict(model.named_parameters())[name] for name in direction]
    products = []
    for pair in pairs:
        for logps in compute_completion_logps(model, collate_pairs([pair])):
            gradient = torch.autograd.grad(logps, parameters, retain_graph=True, allow_unused=True)
            terms = [
                (g.double() * d.double()).sum().item()
                for g, d in zip(gradient, direction.values(), strict=True)
                if g is not None
            ]
            products.append(sum(terms))
    return np.array(products).reshape(-1, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_product_with_each_rows_gradient(family: str):
    model, pairs = build_family(family), make_pairs(4)
    direction = draw_direction(model)
    (changes,), report = compute_directional_changes(model, pairs, [direction], batch_tokens=60)
    expected = differentiate_rows(model, pairs, direction)
    tolerance = CASTS_TO_FLOAT32.get(family, 1e-11) * np.abs(expected).max()
    np.testing.assert_allclose(changes.chosen, expected[:, 0], atol=tolerance)
    np.testing.assert_allclose(changes.rejected, expected[:, 1], atol=tolerance)
    assert bool(report.fallback) == (family in {"mixtral", "qwen3-moe"})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "falcon", "mixtral"])
def test_a_long_prompt_is_multiplied_once_for_both_completions(family: str, monkeypatch: pytest.MonkeyPatch):
    model = build_family(family)
    drawn = make_pairs(3, longest=8)
    prompts = [tuple(range(3, 3 + n)) for n in (50, 33, 41)]  # their whole sixteens are shared: 48, 32, 32
    pairs = [replace(pair, prompt_ids=prompt) for pair, prompt in zip(drawn, prompts, strict=True)]
    direction = draw_direction(model)
    seen = []
    original = product_sums._SharedPrompts.compute_products
    monkeypatch.setattr(
        product_sums._SharedPrompts,
        "compute_products",
        lambda self, matrix: seen.append(len(self._inputs)) or original(self, matrix),
    )
    (changes,), _ = compute_directional_changes(model, pairs, [direction])
    expected = differentiate_rows(model, pairs, direction)
    tolerance = CASTS_TO_FLOAT32.get(family, 1e-11) * np.abs(expected).max()
    np.testing.assert_allclose(changes.chosen, expected[:, 0], atol=tolerance)
    np.testing.assert_allclose(changes.rejected, expected[:, 1], atol=tolerance)
    n_tokens = sum(2 * len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    assert seen and max(seen) < 0.75 * n_tokens


@pytest.fixture
def in_float64() -> Iterator[None]:
    """transformers' norms compute in float32, which leaves differences no digits."""
    with EverythingInFloat64():
        yield


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("family", ["llama-tied-biased", "gpt2", "gemma2", "mixtral"])
def test_equals_a_small_step_along_the_direction(family: str):
    model, pairs, size = build_family(family), make_pairs(3), 1e-6
    direction = draw_direction(model)
    (changes,), _ = compute_directional_changes(model, pairs, [direction])
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(direction[name], alpha=sign * size)
            ends.append(compute_completion_logps(moved, collate_pairs(pairs)).view(-1, 2).numpy())
    measured = (ends[0] - ends[1]) / (2 * size)
    scale = np.abs(measured).max()
    np.testing.assert_allclose(changes.chosen, measured[:, 0], atol=1e-6 * scale)
    np.testing.assert_allclose(changes.rejected, measured[:, 1], atol=1e-6 * scale)


@pytest.mark.usefixtures("in_float64")
def test_along_a_pairs_own_gradients_the_changes_are_its_products():
    """D = W - f L changes log pi(chosen) by ‖W‖² - f<W,L> and log pi(rejected) by <W,L> - f‖L‖²."""
    model, (pair,), f = build_family("llama-tied-biased"), make_pairs(1), 0.7
    names, parameters = zip(*model.named_parameters(), strict=True)
    chosen, rejected = compute_completion_logps(model, collate_pairs([pair]))
    steps = torch.autograd.grad(chosen - f * rejected, parameters)
    (changes,), _ = compute_directional_changes(model, [pair], [dict(zip(names, steps, strict=True))])
    products, _ = compute_fast_products(model, [pair])
    inner = products.grad_inner_product
    np.testing.assert_allclose(changes.chosen, products.chosen_grad_sq_norm - f * inner, rtol=1e-10)
    np.testing.assert_allclose(changes.rejected, inner - f * products.rejected_grad_sq_norm, rtol=1e-10)
    np.testing.assert_allclose(changes.chosen_logps, products.chosen_logps, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coarser_number_types(dtype: torch.dtype):
    model, pairs = build_family("llama-tied-biased", dtype=dtype), make_pairs(4)
    direction = draw_direction(model)
    (changes,), _ = compute_directional_changes(model, pairs, [direction])
    exact = copy.deepcopy(model).double()
    expected = differentiate_rows(exact, pairs, direction)
    tolerance = (1e-5 if dtype == torch.float32 else 5e-2) * np.abs(expected).max()
    np.testing.assert_allclose(changes.chosen, expected[:, 0], atol=tolerance)
    np.testing.assert_allclose(changes.rejected, expected[:, 1], atol=tolerance)


@pytest.mark.parametrize("names", [["model.norm.weight"], ["lm_head.weight"], ["model.layers.1.mlp.up_proj.weight"]])
def test_parameters_the_direction_does_not_name_do_not_move(names: list[str]):
    """Frozen ones may be named too: the direction, not the flags, says what moves; and flags and mode stay."""
    model, pairs = build_family("llama").requires_grad_(False).train(), make_pairs(3)
    direction = {name: step for name, step in draw_direction(model).items() if name in names}
    (changes,), report = compute_directional_changes(model, pairs, [direction])
    assert model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert report.n_parameters == sum(step.numel() for step in direction.values())
    expected = differentiate_rows(model.eval().requires_grad_(True), pairs, direction)
    np.testing.assert_allclose(np.stack([changes.chosen, changes.rejected], axis=1), expected, rtol=1e-10)


def test_changes_are_linear_in_the_direction_and_keep_the_order_of_pairs():
    model, pairs, seen = build_family("llama"), make_pairs(5), []
    one, other = draw_direction(model, 1), draw_direction(model, 2)
    both = {name: 2 * one[name] - 3 * other[name] for name in one}
    (a, b), _ = compute_directional_changes(model, pairs, [one, other])
    (c,), _ = compute_directional_changes(model, pairs, [both], batch_tokens=1, on_progress=seen.append)
    np.testing.assert_allclose(c.chosen, 2 * a.chosen - 3 * b.chosen, rtol=1e-9)
    assert seen == [1] * 5
    (c,), _ = compute_directional_changes(model, pairs[::-1], [both])
    np.testing.assert_allclose(c.rejected[::-1], 2 * a.rejected - 3 * b.rejected, rtol=1e-9)


def test_no_pairs_give_empty_columns():
    model = build_family("llama")
    (changes,), _ = compute_directional_changes(model, [], [draw_direction(model)])
    assert changes.chosen.shape == changes.rejected_logps.shape == (0,)


def test_directions_that_do_not_fit_the_model_are_refused():
    model, pairs = build_family("llama"), make_pairs(1)
    for direction, message in [
        ({}, "the direction names no parameter"),
        ({"lm_head.bias": torch.zeros(97)}, "the direction names 'lm_head.bias', which is no parameter of the model"),
        (
            {"model.norm.weight": torch.zeros(3)},
            r"model.norm.weight: expected a direction of shape \(32,\), got \(3,\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            compute_directional_changes(model, pairs, [direction])
