"""Weighted sums of gradients against each row's own gradient by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_family
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients import weighted_gradients
from dpotool.gradients.weighted_gradients import compute_mean_gradients, compute_weighted_gradient
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import compute_completion_logps


def differentiate(model: nn.Module, pairs: list[TokenizedPair]) -> list[tuple[list[Tensor], list[Tensor]]]:
    parameters = list(model.parameters())
    found = []
    for pair in pairs:
        chosen, rejected = compute_completion_logps(model, collate_pairs([pair]))
        found.append(
            tuple(
                list(torch.autograd.grad(logps, parameters, retain_graph=True, materialize_grads=True))
                for logps in (chosen, rejected)
            )
        )
    return found


@pytest.mark.parametrize("family", ["llama-tied-biased", "gpt2", "mixtral"])
def test_equals_the_weighted_sum_of_each_rows_gradient(family: str):
    model, pairs = build_family(family), make_pairs(5)
    p, q = np.array([1.0, 0.0, -2.0, 0.5, 0.0]), np.array([0.3, 1.0, 0.0, -1.0, 0.0])
    seen: list[int] = []
    got = compute_weighted_gradient(
        model, pairs, p, q, dict(model.named_parameters()), batch_tokens=40, on_progress=seen.append
    )
    assert sum(seen) == 6, "rows of weight zero are not computed"
    rows = differentiate(model, pairs)
    for place, (name, gradient) in enumerate(got.items()):
        expected = sum(p[i] * W[place] + q[i] * L[place] for i, (W, L) in enumerate(rows))
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6, msg=name)


def test_means_over_pairs_of_some_parameters():
    model, pairs = build_family("llama"), make_pairs(4)
    name = "model.layers.1.mlp.up_proj.weight"
    chosen, rejected = compute_mean_gradients(model, pairs, {name: model.get_parameter(name)})
    place = [name for name, _ in model.named_parameters()].index(name)
    rows = differentiate(model, pairs)
    torch.testing.assert_close(chosen, {name: sum(W[place] for W, _ in rows) / 4})
    torch.testing.assert_close(rejected, {name: sum(L[place] for _, L in rows) / 4})


def test_the_model_is_left_as_it_was():
    model = build_family("llama").train()
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    others[0].requires_grad_(False)
    compute_mean_gradients(model, make_pairs(2), dict(model.named_parameters()))
    assert model.training and (first.grad == 1).all() and others[0].grad is None and not others[0].requires_grad


def test_low_precision_gradients_are_added_up_in_float32():
    """Two hundred times 1 in bfloat16 would stop at 256 steps of 1/128: here a mean of many small parts stays exact."""
    model, pairs = build_family("llama", dtype=torch.bfloat16), make_pairs(3)
    chosen, _ = compute_mean_gradients(model, pairs, dict(model.named_parameters()))
    assert {gradient.dtype for gradient in chosen.values()} == {torch.float32}


def test_of_several_processes_each_adds_its_share(monkeypatch: pytest.MonkeyPatch):
    """Two processes played one after the other; their sums, added, are the whole."""
    model, pairs = build_family("llama"), make_pairs(5)
    parameters = dict(model.named_parameters())
    whole = compute_weighted_gradient(model, pairs, np.ones(5), np.ones(5), parameters, batch_tokens=20)
    parts = []
    for process in (0, 1):
        monkeypatch.setattr(weighted_gradients, "share_out", lambda batches, process=process: batches[process::2])
        parts.append(compute_weighted_gradient(model, pairs, np.ones(5), np.ones(5), parameters, batch_tokens=20))
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], gradient)
