"""Products with what all pairs make together, against gradients that are held in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_family
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.batch_products import compute_batch_products, split_by_prompt
from dpotool.gradients.ghost.selection import select_parameters
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.theory.theorem import compute_accuracy_slopes

GAMMA = 1.3


@pytest.fixture(autouse=True)
def all_in_float64() -> Iterator[None]:
    """transformers' norms compute in float32, which leaves sums that nearly cancel no digits."""
    with EverythingInFloat64():
        yield


def flat_gradients(model: nn.Module, pairs: list[TokenizedPair]) -> tuple[Tensor, Tensor]:
    """W and L as matrices (pairs, parameters)."""
    parameters, rows = list(model.parameters()), []
    for pair in pairs:
        for logps in compute_completion_logps(model, collate_pairs([pair])):
            gradient = torch.autograd.grad(logps, parameters, retain_graph=True)
            rows.append(torch.cat([part.flatten() for part in gradient]))
    stacked = torch.stack(rows)
    return stacked[0::2], stacked[1::2]


@pytest.mark.parametrize("is_away", [True, False])
def test_products_with_means(is_away: bool):
    model, pairs = build_family("llama-tied-biased"), make_pairs(6)
    W, L = flat_gradients(model, pairs)
    a, b = (np.linspace(-1, 1, 6), np.linspace(0.5, -1, 6)) if is_away else (np.zeros(6), np.zeros(6))
    batch = compute_batch_products(model, pairs, select_parameters(model), (a, b), gamma=GAMMA, batch_tokens=60)
    slopes = torch.tensor(compute_accuracy_slopes(a, b, GAMMA))
    K = (slopes[:, None] * (W - L)).mean(0)
    for got, direction in (
        (batch.with_mean_chosen, W.mean(0)),
        (batch.with_mean_rejected, L.mean(0)),
        (batch.with_accuracy, K),
    ):
        np.testing.assert_allclose(got[0], (W @ direction).numpy(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(got[1], (L @ direction).numpy(), rtol=1e-9, atol=1e-9)
    assert batch.adamw == {}


def test_pairs_of_one_prompt_stay_in_one_half():
    prompts = ["a", "b", "a", "c", "b", None, "d"]
    pairs = [replace(pair, prompt_id=prompt) for pair, prompt in zip(make_pairs(7), prompts, strict=True)]
    assert [half.tolist() for half in split_by_prompt(pairs)] == [[0, 2, 3, 6], [1, 4, 5]]
    same = [replace(pair, prompt_id="a") for pair in pairs]
    assert [half.tolist() for half in split_by_prompt(same)] == [[0, 2, 4, 6], [1, 3, 5]]


def test_adamws_step_is_torchs_own_and_taken_from_the_other_half():
    """torch.optim.AdamW makes the step: from pairs 1, 3, 5 for pairs 0, 2, 4, and the other way round."""
    model, pairs, f = build_family("llama-tied-biased"), make_pairs(6), 0.7
    W, L = flat_gradients(model, pairs)
    zero = np.zeros(6)
    batch = compute_batch_products(
        model, pairs, select_parameters(model), (zero, zero), gamma=1.0, adamw_shifts=[f, 1.0], batch_tokens=60
    )
    for seen, stepped in (([0, 2, 4], [1, 3, 5]), ([1, 3, 5], [0, 2, 4])):
        weights = nn.Parameter(torch.zeros_like(W[0]))
        weights.grad = -(W[stepped].mean(0) - f * L[stepped].mean(0))
        torch.optim.AdamW([weights], lr=1.0, weight_decay=0.0).step()
        chosen, rejected = batch.adamw[f]
        np.testing.assert_allclose(chosen[seen], (W[seen] @ weights.detach()).numpy(), rtol=1e-5)
        np.testing.assert_allclose(rejected[seen], (L[seen] @ weights.detach()).numpy(), rtol=1e-5)
    np.testing.assert_allclose(batch.with_mean_chosen[0], (W @ W.mean(0)).numpy(), rtol=1e-9)
