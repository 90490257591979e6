"""Both ways of taking inner products of sums of outer products, by hand and against the gradients themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dpotool.gradients.ghost import outer
from dpotool.gradients.ghost.layout import PairSpan
from dpotool.gradients.ghost.outer import (
    SharedInput,
    compute_block_products,
    compute_gram_products,
    sum_products,
)


def span(n_chosen: int, n_rejected: int, n_shared: int = 0) -> PairSpan:
    return PairSpan(slice(0, 1), (slice(0, 1), slice(0, n_chosen)), (slice(1, 2), slice(0, n_rejected)), n_shared)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_layer_by_hand():
    """Chosen: x = (1, 2), (0, 1), g = (1), (2): W = 1 (1, 2) + 2 (0, 1) = (1, 4), ‖W‖² = 17.

    Rejected: x = (3, 1), g = (1): L = (3, 1), ‖L‖² = 10. <W,L> = 3 + 4 = 7.
    """
    inputs = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), torch.tensor([[[3.0, 1.0]]])
    grads = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[1.0]]])
    assert compute_gram_products(SharedInput(2), span(2, 1), inputs, grads).tolist() == [[7, 17, 10]]
    assert compute_block_products(inputs, grads).tolist() == [[7, 17, 10]]


@pytest.mark.parametrize("tile", [1, 3, 64])
@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize("n_shared", [0, 1, 4, 5])
def test_both_ways_equal_the_gradients(tile: int, block: int, n_shared: int, monkeypatch: pytest.MonkeyPatch):
    """Two pairs at once, 9 and 5 tokens; the first n_shared inputs are the same, the output gradients never."""
    monkeypatch.setattr(outer, "TILE", tile)
    monkeypatch.setattr(outer, "BLOCK_ELEMENTS", block)
    inputs, grads = (draw(2, 9, 4, seed=1), draw(2, 5, 4, seed=2)), (draw(2, 9, 3, seed=3), draw(2, 5, 3, seed=4))
    inputs[1][:, :n_shared] = inputs[0][:, :n_shared]
    W, L = (g.mT @ x for x, g in zip(inputs, grads, strict=True))
    expected = torch.stack([(a * b).sum((1, 2)) for a, b in [(W, L), (W, W), (L, L)]], dim=1)
    torch.testing.assert_close(compute_gram_products(SharedInput(4), span(9, 5, n_shared), inputs, grads), expected)
    torch.testing.assert_close(compute_block_products(inputs, grads), expected)
    torch.testing.assert_close(compute_block_products(grads, inputs), expected)


def test_layers_with_one_input_share_its_gram_matrices_until_the_last():
    shared, x = SharedInput(4), (draw(1, 6, 4, seed=1), draw(1, 6, 4, seed=2))
    for n_outputs in (3, 5):
        shared.add_layer(n_outputs)
    assert shared.n_outputs == 8
    grads = [(draw(1, 6, n, seed=n), draw(1, 6, n, seed=n + 1)) for n in (3, 5)]
    first = compute_gram_products(shared, span(6, 6), x, grads[0])
    shared.finish_layer()
    other = (torch.full_like(x[0], torch.nan), x[1])  # not looked at: the matrices are there
    second = compute_gram_products(shared, span(6, 6), other, grads[1])
    shared.finish_layer()
    assert not shared.tiles
    torch.testing.assert_close(first, compute_gram_products(SharedInput(4), span(6, 6), x, grads[0]))
    torch.testing.assert_close(second, compute_gram_products(SharedInput(4), span(6, 6), x, grads[1]))


@pytest.mark.parametrize(
    ("n_tokens", "n_inputs", "n_outputs", "is_cheaper"),
    [(16, 384, 384, True), (64, 384, 1024, True), (512, 384, 384, False), (512, 4096, 4096, True), (64, 384, 4, False)],
)
def test_short_sequences_and_wide_layers_take_gram_matrices(
    n_tokens: int, n_inputs: int, n_outputs: int, is_cheaper: bool
):
    shared = SharedInput(n_inputs)
    shared.add_layer(n_outputs)
    assert shared.is_gram_cheaper(n_tokens, n_tokens, n_tokens // 2) == is_cheaper


def test_sharing_an_input_makes_gram_matrices_cheaper():
    alone, together = SharedInput(384), SharedInput(384)
    alone.add_layer(128)
    for _ in range(3):
        together.add_layer(128)
    lengths = (128, 128, 0)
    assert together.is_gram_cheaper(*lengths) and not alone.is_gram_cheaper(*lengths)


def test_sums_of_a_million_float32_products_keep_seven_digits():
    """torch.dot, which adds them one after the other, is 1e-5 off."""
    values = torch.randn(1, 1000, 1000, generator=torch.Generator().manual_seed(0))
    exact = values.double().square().sum()
    assert sum_products(values, values).item() == pytest.approx(exact.item(), rel=1e-7)
