"""Gradients of an embedding: one vector per distinct token of a pair, and what a tied output layer adds to them.

A table that is also the output layer has the gradient H + E: H from the output layer, in every row of the table, and E
from the embedding, in the rows of the pair's tokens. <H_w + E_w, H_l + E_l> = <H_w, H_l> + the three products with
an E, for which H is needed in those rows only. The output layer comes first in a backward pass: it leaves them here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpotool.gradients.ghost.layout import PairSpan, TokenLayout
from dpotool.gradients.ghost.sums import Products, Vectors, compute_dense_products, sum_products

Rows = Float[Tensor, "2 distinct features"]
"""Rows of a pair's two gradients of the table, chosen then rejected."""


@dataclass(slots=True)
class TableRows:
    """The distinct ids of each pair of a batch, and the output layer's gradient in their rows."""

    distinct_ids: dict[int, Int[Tensor, " distinct"]] = field(default_factory=dict)
    """Place of the pair -> its ids."""
    of_output: dict[int, Rows] = field(default_factory=dict)

    def set_ids(self, layout: TokenLayout, ids: Int[Tensor, "rows seq"]) -> None:
        for span, chosen, rejected in layout.split(ids[..., None]):
            self.distinct_ids[span.pairs.start] = torch.cat([chosen.flatten(), rejected.flatten()]).unique()

    def keep_output_rows(
        self, span: PairSpan, inputs: tuple[Vectors, Vectors], output_grads: tuple[Vectors, Vectors]
    ) -> None:
        ids = self.distinct_ids[span.pairs.start]
        self.of_output[span.pairs.start] = torch.stack(
            [grads[0][:, ids].T @ vectors[0] for vectors, grads in zip(inputs, output_grads, strict=True)]
        )

    def compute_products(self, place: int, rows: Rows) -> Products:
        """Computes the products of the embedding's rows, and the cross terms with a tied output layer's."""
        W, L = rows[:1], rows[1:]
        products = compute_dense_products(W, L)
        if place not in self.of_output:
            return products
        of_output = self.of_output.pop(place)
        H_w, H_l = of_output[:1], of_output[1:]
        cross = [
            sum_products(W, H_l) + sum_products(H_w, L),
            2 * sum_products(W, H_w),
            2 * sum_products(L, H_l),
        ]
        return products + torch.stack(cross, dim=1)


def sum_by_id(
    distinct: Int[Tensor, " distinct"],
    ids: Int[Tensor, " tokens"],
    vectors: Float[Tensor, "tokens features"],
    padding_idx: int | None,
) -> Float[Tensor, "distinct features"]:
    """Sums the vectors of each distinct id; those of `padding_idx`, to which torch gives no gradient, are left out."""
    if padding_idx is not None:
        vectors = vectors * (ids != padding_idx)[:, None]
    sums = vectors.new_zeros(len(distinct), vectors.shape[1])
    return sums.index_add(0, torch.searchsorted(distinct, ids), vectors)
