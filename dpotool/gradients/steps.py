"""Directions in parameter space, computed parameter by parameter on access, so that none is stored whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ADAM_EPS = 1e-8
"""torch.optim.AdamW's default."""


@dataclass(frozen=True, slots=True, eq=False)
class LazyDirection(Mapping[str, Tensor]):
    """Names of parameters -> D in the parameter's shape, computed anew each time; a caller may change what it gets."""

    names: Sequence[str]
    compute: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def weighted_sum(terms: Sequence[tuple[float, Mapping[str, Tensor]]]) -> LazyDirection:
    """Returns sum_k weight_k D_k."""

    def compute(name: str) -> Tensor:
        (weight, first), *others = ((weight, direction[name]) for weight, direction in terms)
        total = weight * first
        for other_weight, other in others:
            total.add_(other, alpha=other_weight)
        return total

    return LazyDirection(list(terms[0][1]), compute)


def first_adam_step(descent: LazyDirection) -> LazyDirection:
    """Returns the first step of AdamW per unit of learning rate, weight decay apart: h / (|h| + eps).

    h is the direction of descent. After one step the moments are m = (1 - beta1) h and v = (1 - beta2) h², and AdamW's
    bias correction divides both factors out again: every parameter moves by nearly the learning rate, in the direction
    of its sign (arXiv:1711.05101, algorithm 2). Clipping a gradient by its norm changes h only by a factor, hence next
    to nothing.
    """

    def compute(name: str) -> Tensor:
        h = descent[name]
        return h.div_(h.abs().add_(ADAM_EPS))

    return LazyDirection(descent.names, compute)


def parameter_difference(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> LazyDirection:
    """Returns the way from one model's parameters to another's, in float32 or better."""

    def compute(name: str) -> Tensor:
        before, after = (weights[name].detach() for weights in (start, end))
        wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
        return after.to(device=before.device, dtype=wide) - before.to(wide)

    return LazyDirection(list(start), compute)
