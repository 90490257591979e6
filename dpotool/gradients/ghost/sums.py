"""Sums of products of two gradients that are in memory, in enough precision for millions of terms."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

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
