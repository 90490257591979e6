"""Inner products of gradients of the form sum_t g_t x_tᵀ, without ever holding such a gradient for a whole layer.

Two ways, the cheaper is taken per pair and layer:

- Gram: <sum_t g_t x_tᵀ, sum_s g'_s x'_sᵀ> = sum_{t,s} (x_t . x'_s)(g_t . g'_s). Layers with the same input (q, k and v;
  gate and up) share the left factor, and its prompt part is the same for both completions. Three matrices are needed:
  chosen with itself, rejected with itself, chosen with rejected. Of a symmetric one only the rectangles from its
  diagonal blocks to the right are computed; what lies right of a diagonal block counts twice (`Tiling`).
- Blocks: the gradients themselves, but only as many elements at a time as stay in a processor's cache.

Products are float32 (float64 for a float64 model); sums of more than a block's are float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from dpotool.gradients.ghost.layout import PairSpan

Vectors = Float[Tensor, "pairs tokens features"]
Products = Float[Tensor, "pairs 3"]
"""<W,L>, ‖W‖², ‖L‖²; float64."""


def compute_dense_products(W: Tensor, L: Tensor) -> Products:
    """Computes the products of gradients (pairs, ...)."""
    return torch.stack([sum_products(W, L), sum_products(W, W), sum_products(L, L)], dim=1)


def sum_products(left: Tensor, right: Tensor) -> Float[Tensor, " pairs"]:
    """Sums left * right over all but the first axis."""
    # Not torch.dot, which adds float32 one after the other: 1e-5 off for a million elements.
    return (left * right).flatten(1).sum(1).double()


def raise_precision(values: Tensor) -> Tensor:
    """Returns the values in float32, or in float64 if they are."""
    return values if values.dtype == torch.float64 else values.float()


TILE = 128
"""Rows of a rectangle. Smaller ones waste less of a symmetric matrix, but make the products less efficient."""

Tiles = Float[Tensor, "pairs elements"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Where the rectangles lie: those of chosen, those of rejected, then the matrix of both."""

    n_chosen: int
    n_rejected: int
    n_shared: int
    """Leading vectors that both sequences have in common; of the inputs, not of the output gradients."""

    @property
    def n_elements(self) -> int:
        return sum(self._sizes)

    @property
    def n_input_dots(self) -> int:
        """Inner products to be computed for the inputs, where the shared ones are needed once."""
        if not self.n_shared:
            return self.n_elements
        own = (self.n_chosen - self.n_shared, self.n_rejected - self.n_shared)
        return own[0] ** 2 + own[1] ** 2 + self.n_chosen * self.n_rejected

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return _count_triangle(self.n_chosen), _count_triangle(self.n_rejected), self.n_chosen * self.n_rejected

    def compute_tiles(self, chosen: Vectors, rejected: Vectors) -> Tiles:
        """Computes all rectangles."""
        tiles = chosen.new_empty(len(chosen), self.n_elements)
        of_chosen, of_rejected, of_both = tiles.split(self._sizes, dim=1)
        for vectors, part in ((chosen, of_chosen), (rejected, of_rejected)):
            for rows, tile in _iter_tiles(part, vectors.shape[1]):
                _multiply_vectors(vectors[:, rows], vectors[:, rows.start :], tile)
        _multiply_vectors(chosen, rejected, of_both.view(-1, self.n_chosen, self.n_rejected))
        return tiles

    def compute_weighted_tiles(self, chosen: Vectors, rejected: Vectors) -> Tiles:
        """Computes all rectangles, each element times how often it counts, and shared vectors' products once."""
        tiles = (self._fill_shared if self.n_shared else self.compute_tiles)(chosen, rejected)
        for part, n_tokens in zip(tiles.split(self._sizes, dim=1), (self.n_chosen, self.n_rejected), strict=False):
            for rows, tile in _iter_tiles(part, n_tokens):
                tile[:, :, rows.stop - rows.start :].mul_(2)
        return tiles

    def _fill_shared(self, chosen: Vectors, rejected: Vectors) -> Tiles:
        tiles = chosen.new_empty(len(chosen), self.n_elements)
        of_chosen, of_rejected, of_both = tiles.split(self._sizes, dim=1)
        both = of_both.view(-1, self.n_chosen, self.n_rejected)
        _multiply_vectors(chosen, rejected, both)
        shared, others = slice(0, self.n_shared), slice(self.n_shared, None)
        for part, known, own in (
            (of_chosen, both[:, :, shared], chosen[:, others]),
            (of_rejected, both[:, shared].mT, rejected[:, others]),
        ):
            own_gram = own.new_empty(len(own), own.shape[1], own.shape[1])
            _multiply_vectors(own, own, own_gram)
            gram = torch.cat([known, torch.cat([known[:, others].mT, own_gram], dim=1)], dim=2)
            for rows, tile in _iter_tiles(part, gram.shape[1]):
                tile.copy_(gram[:, rows, rows.start :])
        return tiles

    def sum_parts(self, products: Tiles) -> Products:
        """Sums each matrix's elements, as <W,L>, ‖W‖², ‖L‖²."""
        chosen, rejected, both = (part.sum(1) for part in products.split(self._sizes, dim=1))
        return torch.stack([both, chosen, rejected], dim=1).double()


def compute_joint_gram(rows: Float[Tensor, "rows tokens features"]) -> Float[Tensor, "pairs both both"]:
    """Computes all products of a pair's vectors with each other, for many short pairs in one operation."""
    both = rows.reshape(len(rows) // 2, 2 * rows.shape[1], rows.shape[2])
    if both.device.type == "cuda" and both.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(both, both.mT, out_dtype=torch.float32)  # exact products, summed in float32
    both = raise_precision(both)
    return torch.bmm(both, both.mT)


def sum_joint(products: Float[Tensor, "pairs both both"]) -> Float[Tensor, "pairs 2 2"]:
    """Sums the parts of elementwise products of joint Gram matrices: chosen and rejected with each other."""
    n_tokens = products.shape[1] // 2
    return products.view(-1, 2, n_tokens, 2, n_tokens).sum((2, 4))


def _multiply_vectors(left: Vectors, right: Vectors, out: Float[Tensor, "pairs rows columns"]) -> None:
    if len(left) == 1:  # a plain matrix product, which takes faster paths than a batch of one
        torch.mm(left[0], right[0].T, out=out[0])
    else:
        torch.bmm(left, right.mT, out=out)


def _iter_tiles(part: Tiles, n_tokens: int) -> Iterator[tuple[slice, Float[Tensor, "pairs rows columns"]]]:
    """Yields the rows of each rectangle of a symmetric matrix, and its place in memory."""
    begin = 0
    for start in range(0, n_tokens, TILE):
        rows = slice(start, min(start + TILE, n_tokens))
        shape = (rows.stop - start, n_tokens - start)
        end = begin + shape[0] * shape[1]
        yield rows, part[:, begin:end].unflatten(1, shape)
        begin = end


def _count_triangle(n_tokens: int) -> int:
    return sum(min(TILE, n_tokens - start) * (n_tokens - start) for start in range(0, n_tokens, TILE))


BLOCK_ELEMENTS = 2**18
"""Elements of a gradient alive at a time, per pair."""
BLOCK_ELEMENTS_ON_GPU = 2**24
"""The same on an accelerator, which has no cache to stay within and much to do at a time."""
TOUCH = 20
"""How many multiplications of a matrix product take the time of multiplying and adding up one stored element."""
TOUCH_ON_GPU = 1000
"""The same on an accelerator, whose matrix units are fast and whose memory is slow beside them."""
LONGEST_JOINT = 80
"""Tokens of a row up to which all pairs of a batch are worked on in one operation; on an accelerator of any length, as
each operation has a fixed cost of launching it (H100, 8B, 4 pairs of 400 tokens: tiles took longer than the model)."""
JOINT = (-1, 0)

RowVectors = Float[Tensor, "rows tokens features"]


@dataclass(slots=True)
class SharedInput:
    """An activation that one or more layers take in, with its Gram matrices while some of these layers are to come."""

    n_features: int
    n_outputs: int = 0
    """Features of the outputs of all layers with this input."""
    n_layers: int = 0
    n_remaining: int = 0
    tiles: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """Span -> weighted tiles (`gram.Tiling`)."""

    def add_layer(self, n_outputs: int) -> None:
        self.n_outputs += n_outputs
        self.n_layers += 1
        self.n_remaining += 1

    def finish_layer(self) -> None:
        self.n_remaining -= 1
        if self.n_remaining <= 0:
            self.tiles.clear()

    def is_joint_gram_cheaper(self, n_tokens: int, device: torch.device) -> bool:
        """Tells whether rows are short enough for one large operation to beat many small ones."""
        gram = 4 * n_tokens**2 * (self.n_features + self.n_outputs)
        n_elements = self.n_features * self.n_outputs
        if device.type == "cpu":
            return n_tokens <= LONGEST_JOINT and gram < 2 * n_tokens * n_elements
        return gram < n_elements * (2 * n_tokens + 3 * TOUCH_ON_GPU)

    def is_gram_cheaper(self, n_chosen: int, n_rejected: int, n_shared: int) -> bool:
        """Compares the multiplications of both ways, over all layers with this input."""
        tiling = Tiling(n_chosen, n_rejected, n_shared)
        n_elements = self.n_features * self.n_outputs
        gram = tiling.n_input_dots * self.n_features + tiling.n_elements * (self.n_outputs + TOUCH * self.n_layers)
        return gram < n_elements * (n_chosen + n_rejected + 3 * TOUCH)


def compute_gram_products(
    shared: SharedInput, span: PairSpan, inputs: tuple[Vectors, Vectors], output_grads: tuple[Vectors, Vectors]
) -> Products:
    """Computes <W,L>, ‖W‖², ‖L‖² of one layer from Gram matrices.

    Args:
        inputs, output_grads: of the chosen and of the rejected completions.
    """
    tiling = Tiling(inputs[0].shape[1], inputs[1].shape[1], span.n_shared)
    if span.key not in shared.tiles:
        shared.tiles[span.key] = tiling.compute_weighted_tiles(*inputs)
    products = tiling.compute_tiles(*output_grads).mul_(shared.tiles[span.key])
    return tiling.sum_parts(products)


def compute_joint_products(
    shared: SharedInput, inputs: RowVectors, output_grads: RowVectors
) -> Float[Tensor, "pairs 2 2"]:
    """Computes the products of chosen and rejected with each other from Gram matrices of all pairs of a batch at once.

    Padding and all, and in the precision of the factors, at least float32.
    """
    if JOINT not in shared.tiles:
        shared.tiles[JOINT] = compute_joint_gram(inputs)
    return sum_joint(compute_joint_gram(output_grads).mul_(shared.tiles[JOINT]))


def compute_block_products(inputs: tuple[Vectors, Vectors], output_grads: tuple[Vectors, Vectors]) -> Products:
    """Computes <W,L>, ‖W‖², ‖L‖² of one layer from its gradients, block after block."""
    if inputs[0].shape[2] > output_grads[0].shape[2]:  # blocks are cut from the longer side; the products are the same
        inputs, output_grads = output_grads, inputs
    n_pairs, _, n_features = inputs[0].shape
    size = max(1, (BLOCK_ELEMENTS if inputs[0].device.type == "cpu" else BLOCK_ELEMENTS_ON_GPU) // n_features)
    total = inputs[0].new_zeros(n_pairs, 3, dtype=torch.float64)
    for start in range(0, output_grads[0].shape[2], size):
        W, L = (
            _multiply(grads[:, :, start : start + size], vectors)
            for vectors, grads in zip(inputs, output_grads, strict=True)
        )
        total += compute_dense_products(W, L)
    return total


def _multiply(grads: Vectors, vectors: Vectors) -> Float[Tensor, "pairs outputs inputs"]:
    if len(grads) == 1:  # a plain matrix product, which takes faster paths than a batch of one
        return torch.mm(grads[0].T, vectors[0])[None]
    return torch.bmm(grads.mT, vectors)
