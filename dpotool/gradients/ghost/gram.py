"""Gram matrices of a pair's two sequences of vectors, symmetric ones by half, flat in one row of memory.

Three matrices are needed: chosen with itself, rejected with itself, chosen with rejected. Of a symmetric one only the
rectangles from its diagonal blocks to the right are computed; what lies right of a diagonal block counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dpotool.gradients.ghost.sums import Products, Vectors, raise_precision

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
                _multiply(vectors[:, rows], vectors[:, rows.start :], tile)
        _multiply(chosen, rejected, of_both.view(-1, self.n_chosen, self.n_rejected))
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
        _multiply(chosen, rejected, both)
        shared, others = slice(0, self.n_shared), slice(self.n_shared, None)
        for part, known, own in (
            (of_chosen, both[:, :, shared], chosen[:, others]),
            (of_rejected, both[:, shared].mT, rejected[:, others]),
        ):
            own_gram = own.new_empty(len(own), own.shape[1], own.shape[1])
            _multiply(own, own, own_gram)
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


def _multiply(left: Vectors, right: Vectors, out: Float[Tensor, "pairs rows columns"]) -> None:
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
