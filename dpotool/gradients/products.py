"""Gradient inner products by autograd, one pair at a time: the slow truth that faster engines are tested against.

For each pair, W = grad log pi(chosen | prompt) and L = grad log pi(rejected | prompt), the gradients of *summed*
log-probabilities over all trained parameters (those with `requires_grad`; with LoRA, the adapter's). A parameter used
twice, such as a tied embedding and output matrix, is one parameter with one gradient.

Dropout is off. Sums are float64, in chunks, so that no second copy of a gradient is made. The gradients themselves come
in the model's type, rounded accordingly: exact sums of coarse gradients are no better than those, so load in float32.
Memory: the model, two gradients of its size, and the activations of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.ghost.modes import evaluation_mode
from dpotool.likelihood.batch import collate_rows
from dpotool.likelihood.completions import compute_completion_logps

CHUNK_ELEMENTS = 2**22
"""Gradient elements converted to float64 at a time (32 MiB each for W and L)."""

Gradient = Sequence[Tensor | None]
"""One tensor per trained parameter; None where the completion's log-probability does not depend on it."""


@dataclass(frozen=True, slots=True)
class PairProducts:
    """What the theory needs to know of one pair's gradients; squared nats, except where said."""

    pair_id: int
    grad_inner_product: float
    """<W, L>"""
    chosen_grad_sq_norm: float
    """‖W‖²"""
    rejected_grad_sq_norm: float
    """‖L‖²"""
    chosen_logps: float
    """Nats, from the same forward pass as W."""
    rejected_logps: float
    """Nats, from the same forward pass as L."""

    @property
    def values(self) -> tuple[float, ...]:
        """All but the pair's id, in this order."""
        return astuple(self)[1:]


@dataclass(frozen=True, slots=True)
class GradientProducts:
    """`PairProducts` of many pairs as columns, in their order."""

    pair_id: Int[np.ndarray, " pairs"]
    grad_inner_product: Float[np.ndarray, " pairs"]
    chosen_grad_sq_norm: Float[np.ndarray, " pairs"]
    rejected_grad_sq_norm: Float[np.ndarray, " pairs"]
    chosen_logps: Float[np.ndarray, " pairs"]
    rejected_logps: Float[np.ndarray, " pairs"]


def compute_gradient_products(
    model: nn.Module, pairs: Sequence[TokenizedPair], *, on_progress: Callable[[int], None] | None = None
) -> GradientProducts:
    """Computes the products of every pair, in order.

    Args:
        on_progress: called with 1 after each pair.

    Raises:
        DpotoolError: as `iter_gradient_products`.
    """
    finished = []
    for products in iter_gradient_products(model, pairs):
        finished.append(products)
        if on_progress is not None:
            on_progress(1)
    return collect_products(finished)


def collect_products(products: Iterable[PairProducts]) -> GradientProducts:
    """Turns products of single pairs into columns; also of as many as were finished before an interruption."""
    rows = list(products)
    pair_ids = np.array([row.pair_id for row in rows], dtype=np.int64)
    values = np.array([row.values for row in rows], dtype=np.float64).reshape(len(rows), 5)
    return GradientProducts(pair_ids, *values.T.copy())


def iter_gradient_products(model: nn.Module, pairs: Iterable[TokenizedPair]) -> Iterator[PairProducts]:
    """Yields the products of one pair after the other; the model and its `.grad` fields are left as they were.

    Raises:
        DpotoolError: the model has no trained parameter, or a gradient is not finite (names the pair's row).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise DpotoolError(
            "no parameter of the model is trained, so there is no gradient",
            remedy="Load an adapter as trainable, or unfreeze the model",
        )
    for pair in pairs:
        with evaluation_mode(model):
            chosen_logps, W = _differentiate(model, parameters, pair.prompt_ids, pair.chosen_ids)
            rejected_logps, L = _differentiate(model, parameters, pair.prompt_ids, pair.rejected_ids)
        values = [*_compute_products(W, L), chosen_logps, rejected_logps]
        products = PairProducts(pair.pair_id, *values)
        if not np.isfinite(astuple(products)).all():
            raise DpotoolError(
                "the gradient of this pair is not finite",
                where=f"row {pair.pair_id}",
                remedy="Check the model's weights, or use --dtype float32",
            )
        yield products


@torch.enable_grad()
def _differentiate(
    model: nn.Module, parameters: Sequence[nn.Parameter], prompt_ids: Sequence[int], completion_ids: Sequence[int]
) -> tuple[float, Gradient]:
    """Returns log pi(completion | prompt) and its gradient. One row, hence no padding and nothing else in the graph."""
    batch = collate_rows([(prompt_ids, completion_ids)]).to(parameters[0].device)
    (logps,) = compute_completion_logps(model, batch)
    if not logps.requires_grad:  # none of the parameters has a part in it
        return float(logps), [None] * len(parameters)
    return float(logps.detach()), torch.autograd.grad(logps, parameters, allow_unused=True)


def _compute_products(W: Gradient, L: Gradient) -> list[float]:
    """Returns <W, L>, ‖W‖² and ‖L‖², summed in float64."""
    totals = torch.zeros(3, dtype=torch.float64)
    for of_chosen, of_rejected in zip(W, L, strict=True):
        present = of_chosen if of_chosen is not None else of_rejected
        if present is None:
            continue
        both = (torch.zeros_like(present) if part is None else part for part in (of_chosen, of_rejected))
        of_parameter = torch.zeros(3, dtype=torch.float64, device=present.device)
        for w, l in zip(*map(_chunks, both), strict=True):  # noqa: E741
            of_parameter += torch.stack([w @ l, w @ w, l @ l])
        totals += of_parameter.cpu()
    return totals.tolist()


def _chunks(gradient: Tensor) -> Iterator[Float[Tensor, " elements"]]:
    for chunk in gradient.reshape(-1).split(CHUNK_ELEMENTS):
        yield chunk.double()
