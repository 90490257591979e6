"""Adds up <grad log pi(completion), D> of every completion of a batch for some directions D in parameter space.

For a linear layer the gradient is sum_t g_t x_tᵀ, so its product with D is sum_t g_tᵀ D x_t: no gradient is formed. The
inputs x_t of a prompt are the same for both completions, and so are their D x_t, which are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from dpotool.gradients.ghost.layout import TokenLayout
from dpotool.gradients.ghost.outer import SharedInput
from dpotool.gradients.ghost.sums import raise_precision
from dpotool.gradients.ghost.uses import Part

SMALLEST_SHARE = 0.2
"""Of a batch's tokens, padding counted, that must be a second copy of a prompt for multiplying it once to pay."""

Direction = Mapping[str, Tensor]
"""Parameter name -> D, in the parameter's shape; may be a mapping that computes its values on access."""


class DirectionalSums:
    """The sums of one batch.

    Args:
        directions: all name the same parameters.
        n_completions: rows of the batch, two a pair.
    """

    def __init__(self, directions: Sequence[Direction], n_completions: int, *, device: torch.device) -> None:
        self._directions = directions
        self.totals = torch.zeros(len(directions), n_completions, dtype=torch.float64, device=device)

    def add_outer(
        self, part: Part, layout: TokenLayout, shared: SharedInput, operand: Tensor, output_grad: Tensor
    ) -> None:
        x, g = raise_precision(operand), raise_precision(output_grad)
        sharing = _SharedPrompts(layout, x, g) if _is_sharing_worthwhile(layout) else None
        for number, direction in self._steps_of(part, g):  # (outputs, inputs)
            matrix = direction.T if part.is_transposed else direction
            if sharing is not None:
                self.totals[number] += sharing.compute_products(matrix)
            else:
                self._add(number, layout, _compute_products(x.flatten(0, -2), g.flatten(0, -2), matrix))

    def start_lookup(self, part: Part, ids: Tensor) -> None:
        pass

    def add_lookup(
        self, part: Part, layout: TokenLayout, ids: Tensor, output_grad: Tensor, padding_idx: int | None
    ) -> None:
        g = raise_precision(output_grad)
        if padding_idx is not None:
            g = g * (ids != padding_idx)[..., None]
        for number, direction in self._steps_of(part, g):
            self._add(number, layout, (F.embedding(ids, direction) * g).sum(-1))

    def add_dense(self, part: Part, layout: TokenLayout, gradient: Float[Tensor, "completions elements"]) -> None:
        first = 2 * layout.pairs.start
        for number, direction in self._steps_of(part, gradient):
            products = gradient.double() @ direction.flatten().double()
            self.totals[number, first : first + len(products)] += products

    def _steps_of(self, part: Part, like: Tensor) -> Iterator[tuple[int, Tensor]]:
        for number, direction in enumerate(self._directions):
            step = direction[part.name]
            if isinstance(step, DTensor):  # of sharded weights: all processes are at the same layer, and gather it
                step = step.full_tensor()
            yield number, step.to(device=like.device, dtype=like.dtype)

    def _add(self, number: int, layout: TokenLayout, by_token: Tensor) -> None:
        sums = layout.sum_completions(by_token.double(), 1).squeeze(1)
        first = 2 * layout.pairs.start
        self.totals[number, first : first + len(sums)] += sums


def _compute_products(
    x: Float[Tensor, "tokens inputs"], g: Float[Tensor, "tokens outputs"], matrix: Float[Tensor, "outputs inputs"]
) -> Float[Tensor, " tokens"]:
    """Returns gᵀ D x of each token, by the product with D that gives the narrower result: an output layer's is wide."""
    by_token = (g @ matrix) * x if x.shape[1] <= g.shape[1] else (x @ matrix.T) * g
    return by_token.sum(1)


def _is_sharing_worthwhile(layout: TokenLayout) -> bool:
    """Tells whether prompts are so long that multiplying their inputs once saves more than putting rows together."""
    if not layout.has_own_rows:
        return False
    n_shared = sum(span.n_shared for span in layout.spans)
    return n_shared >= SMALLEST_SHARE * layout.n_rows * layout.n_tokens


class _SharedPrompts:
    """The inputs of one layer with each prompt once, in one matrix, and the output gradients of both completions."""

    def __init__(self, layout: TokenLayout, operand: Tensor, output_grad: Tensor) -> None:
        inputs = []
        self._places: list[tuple[slice, slice, int]] = []
        start = 0
        for span, chosen, rejected in layout.split(operand):
            own = rejected[0, span.n_shared :]
            inputs += [chosen[0], own]
            middle, end = start + chosen.shape[1], start + chosen.shape[1] + len(own)
            self._places.append((slice(start, middle), slice(middle, end), span.n_shared))
            start = end
        self._inputs = torch.cat(inputs)
        self._grads = [(chosen[0], rejected[0]) for _, chosen, rejected in layout.split(output_grad)]

    def compute_products(self, matrix: Float[Tensor, "outputs inputs"]) -> Float[Tensor, " completions"]:
        """Returns sum_t g_tᵀ D x_t of each completion, chosen and rejected in turn; float64."""
        moved = self._inputs @ matrix.T
        totals = []
        for (of_chosen, of_rejected, n_shared), (chosen, rejected) in zip(self._places, self._grads, strict=True):
            prompt = moved[of_chosen][:n_shared]
            totals.append(_sum_products(moved[of_chosen], chosen))
            totals.append(
                _sum_products(prompt, rejected[:n_shared]) + _sum_products(moved[of_rejected], rejected[n_shared:])
            )
        return torch.stack(totals)


def _sum_products(left: Float[Tensor, "tokens features"], right: Float[Tensor, "tokens features"]) -> Tensor:
    return (left * right).sum(1).double().sum()
