"""Inner products of gradients of the form sum_t g_t x_tᵀ, without ever holding such a gradient for a whole layer.

Two ways, the cheaper is taken per pair and layer:

- Gram: <sum_t g_t x_tᵀ, sum_s g'_s x'_sᵀ> = sum_{t,s} (x_t . x'_s)(g_t . g'_s). Layers with the same input (q, k and v;
  gate and up) share the left factor, and its prompt part is the same for both completions.
- Materialised: the gradients themselves in blocks of `BLOCK_ELEMENTS`, small enough to stay in a processor's cache.

Sums are float32 (float64 for a float64 model) within a block, float64 between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dpotool.theory.ghost.layout import PairSpan

TILE = 64
"""Rows of a Gram matrix computed at a time; of a symmetric one only the upper triangle's tiles are."""
BLOCK_ELEMENTS = 2**17
"""Elements of a gradient alive at a time, per pair."""

Vectors = Float[Tensor, "pairs tokens features"]
Products = Float[Tensor, "pairs numbers"]
"""<W,L>, ‖W‖², ‖L‖², and where asked for ‖W - L‖²; float64."""


@dataclass(slots=True)
class SharedInput:
    """An activation that one or more layers take in, with its Gram matrices while some of these layers are to come."""

    n_features: int
    n_outputs: int = 0
    """Features of the outputs of all layers with this input."""
    n_remaining: int = 0
    tiles: dict[int, list[Tensor]] = field(default_factory=dict)
    """First pair of a span -> weighted tiles of the Gram matrices."""

    def add_layer(self, n_outputs: int) -> None:
        self.n_outputs += n_outputs
        self.n_remaining += 1

    def finish_layer(self) -> None:
        self.n_remaining -= 1
        if self.n_remaining <= 0:
            self.tiles.clear()

    def is_gram_cheaper(self, n_chosen: int, n_rejected: int, n_shared: int) -> bool:
        """Compares multiplications of both ways, over all layers with this input."""
        cross = n_chosen * n_rejected
        triangles = _count_triangle(n_chosen) + _count_triangle(n_rejected)
        squares = (n_chosen - n_shared) ** 2 + (n_rejected - n_shared) ** 2
        gram = (cross + (squares if n_shared else triangles)) * self.n_features + (cross + triangles) * self.n_outputs
        return gram < (n_chosen + n_rejected) * self.n_features * self.n_outputs


def _count_triangle(n_tokens: int) -> int:
    """Counts the elements of a symmetric matrix in the rectangles that `_compute_triangle` makes of it."""
    return sum((rows.stop - rows.start) * (n_tokens - rows.start) for rows in _tile_rows(n_tokens))


def _tile_rows(n_tokens: int) -> list[slice]:
    return [slice(start, min(start + TILE, n_tokens)) for start in range(0, n_tokens, TILE)]


def compute_gram_products(
    shared: SharedInput, span: PairSpan, inputs: tuple[Vectors, Vectors], output_grads: tuple[Vectors, Vectors]
) -> Products:
    """Computes <W,L>, ‖W‖², ‖L‖² of one layer from Gram matrices.

    Args:
        inputs, output_grads: of the chosen and of the rejected completions.
    """
    if span.pairs.start not in shared.tiles:
        shared.tiles[span.pairs.start] = _compute_input_tiles(*inputs, span.n_shared)
    input_tiles = shared.tiles[span.pairs.start]
    output_tiles = _compute_output_tiles(*output_grads)
    sums = [sum_products(left, right) for left, right in zip(input_tiles, output_tiles, strict=True)]
    n_chosen = len(_tile_rows(inputs[0].shape[1]))
    chosen, rejected = torch.stack(sums[:n_chosen]).sum(0), torch.stack(sums[n_chosen:-1]).sum(0)
    return torch.stack([sums[-1], chosen, rejected], dim=1)


def _compute_input_tiles(chosen: Vectors, rejected: Vectors, n_shared: int) -> list[Tensor]:
    """Computes upper triangles in tiles, each element weighted by how often it counts, and the cross matrix."""
    cross = chosen @ rejected.mT  # (pairs, chosen tokens, rejected tokens)
    if n_shared:
        grams = [
            _complete_gram(cross[:, :, :n_shared], chosen[:, n_shared:]),
            _complete_gram(cross[:, :n_shared].mT, rejected[:, n_shared:]),
        ]
        tiles = [gram[:, rows, rows.start :] for gram in grams for rows in _tile_rows(gram.shape[1])]
    else:
        tiles = _compute_triangle(chosen) + _compute_triangle(rejected)
    return [*map(_weight_tile, tiles), cross]


def _complete_gram(
    known: Float[Tensor, "pairs tokens shared"], others: Vectors
) -> Float[Tensor, "pairs tokens tokens"]:
    """Builds a Gram matrix from its columns of shared tokens and the vectors of the others."""
    n_shared = known.shape[2]
    right = torch.cat([known[:, n_shared:].mT, others @ others.mT], dim=1)
    return torch.cat([known, right], dim=2)


def _compute_output_tiles(chosen: Vectors, rejected: Vectors) -> list[Tensor]:
    return [*_compute_triangle(chosen), *_compute_triangle(rejected), chosen @ rejected.mT]


def _compute_triangle(vectors: Vectors) -> list[Tensor]:
    return [vectors[:, rows] @ vectors[:, rows.start :].mT for rows in _tile_rows(vectors.shape[1])]


def _weight_tile(tile: Float[Tensor, "pairs rows columns"]) -> Float[Tensor, "pairs rows columns"]:
    """Doubles what lies right of the tile's diagonal block, and stands for its mirror image too."""
    weights = tile.new_full(tile.shape[2:], 2.0)
    weights[: tile.shape[1]] = 1.0
    return tile * weights


def compute_block_products(
    inputs: tuple[Vectors, Vectors], output_grads: tuple[Vectors, Vectors], *, with_difference: bool
) -> Products:
    """Computes <W,L>, ‖W‖², ‖L‖² of one layer, and with_difference ‖W - L‖², from its gradients, block after block."""
    if inputs[0].shape[2] > output_grads[0].shape[2]:  # blocks are cut from the longer side; the products are the same
        inputs, output_grads = output_grads, inputs
    n_pairs, _, n_features = inputs[0].shape
    size = max(1, BLOCK_ELEMENTS // n_features)
    total = inputs[0].new_zeros(n_pairs, 4 if with_difference else 3, dtype=torch.float64)
    for start in range(0, output_grads[0].shape[2], size):
        W, L = (
            grads[:, :, start : start + size].mT @ vectors for vectors, grads in zip(inputs, output_grads, strict=True)
        )
        total += compute_dense_products(W, L, with_difference=with_difference)
    return total


def compute_dense_products(W: Tensor, L: Tensor, *, with_difference: bool) -> Products:
    """Computes the same of gradients that are there: (pairs, ...)."""
    products = [sum_products(W, L), sum_products(W, W), sum_products(L, L)]
    if with_difference:
        difference = W - L
        products.append(sum_products(difference, difference))
    return torch.stack(products, dim=1)


def sum_products(left: Tensor, right: Tensor) -> Float[Tensor, " pairs"]:
    """Sums left * right over all but the first axis, in float64 between rows."""
    # Not torch.dot, which adds float32 one after the other: 1e-5 off for a million elements.
    return (left * right).sum(-1).double().reshape(len(left), -1).sum(1)


def raise_precision(values: Tensor) -> Tensor:
    """Returns the values in float32, or in float64 if they are."""
    return values if values.dtype == torch.float64 else values.float()
