"""Adds up, over all parameters as they come in, what a batch's gradients have in common with each other or a direction.

`ProductSums`: <W,L>, ‖W‖², ‖L‖² of every pair. The gradient of an embedding is one vector per distinct token of a pair.
A table that is also the output layer has the gradient H + E: H from the output layer, in every row of the table, and E
from the embedding, in the rows of the pair's tokens. <H_w + E_w, H_l + E_l> = <H_w, H_l> + the three products with an
E, for which H is needed in those rows only. The output layer comes first in a backward pass, and leaves them in
`TableRows`.

`DirectionalSums`: <grad log pi(completion), D> of every completion for some directions D in parameter space. For a
linear layer the gradient is sum_t g_t x_tᵀ, so its product with D is sum_t g_tᵀ D x_t: no gradient is formed. The
inputs x_t of a prompt are the same for both completions, and so are their D x_t, which are computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from dpotool.gradients.ghost.layout import PairSpan, TokenLayout
from dpotool.gradients.ghost.outer import (
    Products,
    SharedInput,
    Vectors,
    compute_block_products,
    compute_dense_products,
    compute_gram_products,
    compute_joint_products,
    raise_precision,
    sum_products,
)
from dpotool.gradients.ghost.uses import Part

Rows = Float[Tensor, "2 distinct features"]
"""Rows of a pair's two gradients of the table, chosen then rejected."""


class ProductSums:
    """The sums of one batch.

    Args:
        by_pair: the batch laid out pair by pair.
        tied: names of tables that are both embedding and output layer.
    """

    def __init__(self, by_pair: TokenLayout, tied: Iterable[str], *, device: torch.device) -> None:
        self._totals: Products = torch.zeros(by_pair.pairs.stop, 3, dtype=torch.float64, device=device)
        self._of_all: list[Float[Tensor, "pairs 2 2"]] = []
        """Products of chosen and rejected with each other, of one parameter and all pairs; they are added up at the
        end, as on a GPU the launching of five small operations for each parameter took longer than its products."""
        self._by_pair = by_pair
        self._tied = {name: TableRows() for name in tied}

    @property
    def totals(self) -> Products:
        """What has been added up so far."""
        if self._of_all:
            sums = torch.stack(self._of_all).double().sum(0)
            self._totals += torch.stack([sums[:, 0, 1], sums[:, 0, 0], sums[:, 1, 1]], dim=1)
            self._of_all.clear()
        return self._totals

    def _add(self, pairs: slice, products: Products) -> None:
        self._totals[pairs].add_(products)

    def add_outer(
        self, part: Part, layout: TokenLayout, shared: SharedInput, operand: Tensor, output_grad: Tensor
    ) -> None:
        table = self._tied.get(part.name)
        if table is not None and len(layout.spans) < layout.pairs.stop - layout.pairs.start:
            layout = self._by_pair
        is_short = layout.completion_of_token is None and shared.is_joint_gram_cheaper(layout.n_tokens, operand.device)
        if is_short and table is None:
            rows = (layout.as_rows(factor) for factor in (operand, output_grad))
            self._of_all.append(compute_joint_products(shared, *rows))
            return
        for (span, *inputs), (_, *grads) in zip(layout.split(operand), layout.split(output_grad), strict=True):
            factors = _raise_both(*inputs), _raise_both(*grads)
            lengths = inputs[0].shape[1], inputs[1].shape[1]
            if shared.is_gram_cheaper(*lengths, span.n_shared):
                products = compute_gram_products(shared, span, *factors)
            else:
                products = compute_block_products(*factors)
            self._add(span.pairs, products)
            if table is not None:
                table.keep_output_rows(span, *factors)

    def start_lookup(self, part: Part, ids: Tensor) -> None:
        if part.name in self._tied:
            self._tied[part.name].set_ids(self._by_pair, ids)

    def add_lookup(
        self, part: Part, layout: TokenLayout, ids: Tensor, output_grad: Tensor, padding_idx: int | None
    ) -> None:
        table = self._tied.get(part.name, TableRows())
        if not table.distinct_ids:
            table.set_ids(self._by_pair, ids)
        grads = self._by_pair.split(output_grad)
        for (span, *pair_ids), (_, *pair_grads) in zip(self._by_pair.split(ids[..., None]), grads, strict=True):
            distinct = table.distinct_ids[span.pairs.start]
            rows = torch.stack(
                [
                    sum_by_id(distinct, row_ids.flatten(), raise_precision(row_grads[0]), padding_idx)
                    for row_ids, row_grads in zip(pair_ids, pair_grads, strict=True)
                ]
            )
            self._add(span.pairs, table.compute_products(span.pairs.start, rows))

    def add_dense(self, part: Part, layout: TokenLayout, gradient: Float[Tensor, "completions elements"]) -> None:
        both = gradient.unflatten(0, (-1, 2))
        if layout.pairs == self._by_pair.pairs:
            self._of_all.append((both.unsqueeze(1) * both.unsqueeze(2)).sum(3))
        else:
            self._add(layout.pairs, compute_dense_products(*both.unbind(1)))


def _raise_both(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    return raise_precision(chosen), raise_precision(rejected)


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
