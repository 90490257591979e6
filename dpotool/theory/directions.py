"""Predicted change of every pair's two log-likelihoods for any direction in parameter space, to first order.

d log pi(y) = <grad log pi(y), D>, where D is a step of SGD, the update AdamW really made, or the difference of two
checkpoints; from one forward and one backward pass over activations for all pairs of a batch, without their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from jaxtyping import Float
from torch import Tensor, nn

from dpotool.data.batches import plan_batches
from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import collate_rows
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.pair_logps import DEFAULT_BATCH_TOKENS, Progress
from dpotool.theory.engine import EngineReport, GradientEngine
from dpotool.theory.ghost.directional_sums import DirectionalSums
from dpotool.theory.ghost.modes import evaluation_mode, training_only
from dpotool.theory.ghost.selection import ParameterSelection
from dpotool.theory.ghost.shares import gather_shares, share_out


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
    direction: Mapping[str, Tensor],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: Progress | None = None,
) -> tuple[DirectionalChanges, EngineReport]:
    """Computes the change of every pair's log-likelihoods along a direction; pairs are shared out over processes.

    Args:
        direction: name in `model.named_parameters()` -> D in the parameter's shape. Parameters that are not named do
            not move; a tied matrix goes by the one name it has there.
        batch_tokens: budget of padded tokens a batch, both rows of a pair counted.
        on_progress: called with the number of pairs each finished batch held.

    Raises:
        ValueError: the direction is empty, names something else, or has another shape.
    """
    engine = GradientEngine(model, _select_moved(model, direction))
    finished: list[tuple[int, list[float]]] = []
    for batch in share_out(plan_batches([2 * pair.longest for pair in pairs], batch_tokens)):
        changes = _compute_batch(engine, [pairs[place] for place in batch], direction)
        finished += zip(batch, changes, strict=True)
        if on_progress is not None:
            on_progress(len(batch) * PartialState().num_processes)
    ordered = [values for _, values in sorted(gather_shares(finished))]
    return DirectionalChanges(*np.array(ordered, dtype=np.float64).reshape(-1, 4).T.copy()), engine.report


def _select_moved(model: nn.Module, direction: Mapping[str, Tensor]) -> ParameterSelection:
    named = dict(model.named_parameters())
    for name, step in direction.items():
        if name not in named:
            raise ValueError(f"the direction names {name!r}, which is no parameter of the model")
        if step.shape != named[name].shape:
            raise ValueError(
                f"{name}: expected a direction of shape {tuple(named[name].shape)}, got {tuple(step.shape)}"
            )
    if not direction:
        raise ValueError("the direction names no parameter")
    return ParameterSelection("those the direction moves", {name: named[name] for name in named if name in direction})


def _compute_batch(
    engine: GradientEngine, pairs: Sequence[TokenizedPair], direction: Mapping[str, Tensor]
) -> list[list[float]]:
    """Returns (chosen change, rejected change, chosen logps, rejected logps) of every pair."""
    sums = DirectionalSums(direction, 2 * len(pairs), device=engine.device)
    logps = engine.run(pairs, sums)
    if engine.fallback:
        sums.totals += _differentiate_rows(engine, pairs, direction)
    return torch.cat([sums.totals.view(-1, 2), logps.view(-1, 2)], dim=1).tolist()


@torch.enable_grad()
def _differentiate_rows(
    engine: GradientEngine, pairs: Sequence[TokenizedPair], direction: Mapping[str, Tensor]
) -> Float[Tensor, " rows"]:
    """Returns the part of the parameters without a rule: each row's own gradient by autograd, times the direction."""
    steps = [direction[name].to(engine.device) for name in engine.claims.fallback]
    totals = []
    with evaluation_mode(engine.model), training_only(engine.model, engine.fallback):
        for pair in pairs:
            for completion in (pair.chosen_ids, pair.rejected_ids):
                batch = collate_rows([(pair.prompt_ids, completion)]).to(engine.device)
                (logps,) = compute_completion_logps(engine.model, batch)
                if not logps.requires_grad:  # none of the parameters has a part in it
                    totals.append(0.0)
                    continue
                gradient = torch.autograd.grad(logps, engine.fallback, allow_unused=True)
                totals.append(sum(_dot(*both) for both in zip(gradient, steps, strict=True)))
    return torch.tensor(totals, dtype=torch.float64, device=engine.device)


def _dot(gradient: Tensor | None, step: Tensor) -> float:
    return 0.0 if gradient is None else float((gradient.double() * step.double()).sum())
