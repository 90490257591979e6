"""Directions in parameter space, and the change of every pair's two log-likelihoods along them, to first order.

d log pi(y) = <grad log pi(y), D>, where D is a step of SGD, the update AdamW really made, or the difference of two
checkpoints; from one forward and one backward pass over activations for all pairs of a batch, without their gradients.
A direction is computed parameter by parameter on access, so that none is stored whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.engine import EngineReport, GradientEngine
from dpotool.gradients.ghost.audit import Claims
from dpotool.gradients.ghost.modes import evaluation_mode, training_only
from dpotool.gradients.ghost.product_sums import Direction, DirectionalSums
from dpotool.gradients.ghost.selection import ParameterSelection
from dpotool.likelihood.batch import collate_rows
from dpotool.likelihood.budget import plan_batches
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.pair_logps import DEFAULT_BATCH_TOKENS, Advance, run_shares
from dpotool.likelihood.processes import gather_shares

ADAM_EPS = 1e-8
"""torch.optim.AdamW's default."""


@dataclass(frozen=True, slots=True)
class DirectionalChanges:
    """Per pair, in their order; nats, float64."""

    chosen: Float[np.ndarray, " pairs"]
    """<W, D>: change of log pi(chosen) for a step of size 1 along D."""
    rejected: Float[np.ndarray, " pairs"]
    """<L, D>"""
    chosen_logps: Float[np.ndarray, " pairs"]
    rejected_logps: Float[np.ndarray, " pairs"]


def compute_directional_changes(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    directions: Sequence[Direction],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    claims: Claims | None = None,
    on_progress: Advance | None = None,
) -> tuple[list[DirectionalChanges], EngineReport]:
    """Computes the changes of every pair's log-likelihoods along each direction; pairs are shared out over processes.

    All directions share the two passes; each adds one product per layer.

    Args:
        directions: name in `model.named_parameters()` -> D in the parameter's shape, the same names in each. Parameters
            that are not named do not move; a tied matrix goes by the one name it has there.
        batch_tokens: budget of padded tokens a batch, both rows of a pair counted.
        claims: as `GradientEngine` takes them.
        on_progress: called with the number of pairs in each finished batch.

    Raises:
        ValueError: a direction is empty, names something else, or has another shape.
    """
    engine = GradientEngine(model, _select_moved(model, directions), pairs=pairs, claims=claims)
    finished: dict[int, list[list[float]]] = {}

    def run(batch: Sequence[int]) -> list[list[list[float]]]:
        return _compute_batch(engine, [pairs[place] for place in batch], directions)

    batches = plan_batches([2 * pair.longest for pair in pairs], batch_tokens)
    for batch, values in run_shares(model, pairs, batches, run):
        finished |= zip(batch, values, strict=True)
        if on_progress is not None:
            on_progress(len(batch) * PartialState().num_processes)
    ordered = list(gather_shares(finished, len(pairs)).values())
    columns = np.array(ordered, dtype=np.float64).reshape(len(ordered), len(directions) + 1, 2).transpose(1, 2, 0)
    *changes, logps = columns.copy()
    return [DirectionalChanges(*change, *logps) for change in changes], engine.report


def _select_moved(model: nn.Module, directions: Sequence[Direction]) -> ParameterSelection:
    named = dict(model.named_parameters())
    first, *others = (set(direction) for direction in directions)
    if not first:
        raise ValueError("the direction names no parameter")
    if any(other != first for other in others):
        raise ValueError("the directions do not name the same parameters")
    for direction in directions:
        for name, step in direction.items():
            if name not in named:
                raise ValueError(f"the direction names {name!r}, which is no parameter of the model")
            if step.shape != named[name].shape:
                raise ValueError(
                    f"{name}: expected a direction of shape {tuple(named[name].shape)}, got {tuple(step.shape)}"
                )
    return ParameterSelection("those the direction moves", {name: named[name] for name in named if name in first})


def _compute_batch(
    engine: GradientEngine, pairs: Sequence[TokenizedPair], directions: Sequence[Direction]
) -> list[list[list[float]]]:
    """Returns of every pair: for each direction (chosen change, rejected change), then (chosen, rejected) logps."""
    sums = DirectionalSums(directions, 2 * len(pairs), device=engine.device)
    logps = engine.run(pairs, sums)
    if engine.fallback:
        sums.totals += _differentiate_rows(engine, pairs, directions)
    values = torch.cat([sums.totals, logps[None]])  # (directions + 1, rows)
    return values.unflatten(1, (-1, 2)).transpose(0, 1).tolist()


@torch.enable_grad()
def _differentiate_rows(
    engine: GradientEngine, pairs: Sequence[TokenizedPair], directions: Sequence[Direction]
) -> Float[Tensor, "directions rows"]:
    """Returns the part of the parameters without a rule: the gradient of each row by autograd, times each direction."""
    names = engine.claims.fallback
    totals = []
    with evaluation_mode(engine.model), training_only(engine.model, engine.fallback):
        for pair in pairs:
            for completion in (pair.chosen_ids, pair.rejected_ids):
                batch = collate_rows([(pair.prompt_ids, completion)]).to(engine.device)
                (logps,) = compute_completion_logps(engine.model, batch)
                gradient: Sequence[Tensor | None] = [None] * len(names)
                if logps.requires_grad:  # else none of the parameters has a part in it
                    gradient = torch.autograd.grad(logps, engine.fallback, allow_unused=True)
                totals.append([_dot(names, gradient, direction) for direction in directions])
    return torch.tensor(totals, dtype=torch.float64, device=engine.device).T


def _dot(names: Sequence[str], gradient: Sequence[Tensor | None], direction: Direction) -> float:
    return sum(
        float((part.double() * direction[name].to(part.device).double()).sum())
        for name, part in zip(names, gradient, strict=True)
        if part is not None
    )


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
