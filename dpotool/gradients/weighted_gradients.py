"""The gradient of a weighted sum of log-likelihoods over many pairs: the direction of one step on all of them together.

One backward pass with weight gradients per batch, like a training step's, added up. Rows of weight zero are
not computed. Mean gradients of the chosen and of the rejected answers cost together what one training step on the same
pairs costs, and give every batch-level quantity of the theory (`theory.gaps`, `theory.advice`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.ghost.modes import evaluation_mode, training_only
from dpotool.gradients.unfinished import UnfinishedPasses
from dpotool.likelihood.batch import collate_rows
from dpotool.likelihood.budget import plan_batches
from dpotool.likelihood.completions import compute_completion_logps, is_sharded
from dpotool.likelihood.pair_logps import DEFAULT_BATCH_TOKENS, Advance
from dpotool.likelihood.processes import run_inside, share_in_step, share_out

Gradient = dict[str, Tensor]
"""Name in `model.named_parameters()` -> gradient in the parameter's shape, float32 or better."""
Weights = Float[np.ndarray, " pairs"]


def compute_weighted_gradient(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    chosen_weights: Weights,
    rejected_weights: Weights,
    parameters: Mapping[str, nn.Parameter],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: Advance | None = None,
    unfinished: UnfinishedPasses | None = None,
) -> Gradient:
    """Computes sum_i (p_i grad log pi(chosen_i) + q_i grad log pi(rejected_i)); pairs are shared out over processes.

    Dropout is off. The model, its `.grad` fields and flags are left as they were.

    Args:
        chosen_weights, rejected_weights: p and q.
        parameters: those to differentiate by, under their names.
        batch_tokens: budget of padded tokens a batch.
        on_progress: called with the number of rows each finished batch held.
        unfinished: takes the sums from time to time, and may have those of a run that was cut off. Sums of sharded
            weights are not saved.
    """
    rows = [
        (pair.prompt_ids, completion, float(weight))
        for pair, p, q in zip(pairs, chosen_weights, rejected_weights, strict=True)
        for completion, weight in ((pair.chosen_ids, p), (pair.rejected_ids, q))
        if weight != 0
    ]
    total = {name: torch.zeros_like(parameter, dtype=_sum_type(parameter)) for name, parameter in parameters.items()}
    batches = plan_batches([len(prompt) + len(completion) for prompt, completion, _ in rows], batch_tokens)
    sharded = is_sharded(model)
    share = list(share_in_step(batches)) if sharded else [(batch, True) for batch in share_out(batches)]
    keeper = None if sharded else unfinished
    n_known = 0 if keeper is None else keeper.begin([rows, batches], total)
    with evaluation_mode(model), training_only(model, parameters.values()), _adding_up(parameters, total):
        for number, (batch, counts) in enumerate(share, 1):
            if number > n_known:
                _add_batch(model, [rows[place] for place in batch], counts=counts)
                if keeper is not None:
                    keeper.offer(number, total)
            if on_progress is not None and counts:
                on_progress(len(batch))
    return total if sharded else {name: reduce(gradient, "sum") for name, gradient in total.items()}


def compute_mean_gradients(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    parameters: Mapping[str, nn.Parameter],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: Advance | None = None,
    unfinished: UnfinishedPasses | None = None,
) -> tuple[Gradient, Gradient]:
    """Computes the means over pairs of W, the chosen answers' gradients, and of L, the rejected ones'."""
    share, nothing = np.full(len(pairs), 1 / max(len(pairs), 1)), np.zeros(len(pairs))
    chosen, rejected = (
        compute_weighted_gradient(
            model, pairs, p, q, parameters, batch_tokens=batch_tokens, on_progress=on_progress, unfinished=unfinished
        )
        for p, q in ((share, nothing), (nothing, share))
    )
    return chosen, rejected


@contextmanager
def _adding_up(parameters: Mapping[str, nn.Parameter], total: Gradient) -> Iterator[None]:
    """Adds each gradient to its total as soon as the backward pass has it, and frees it; `.grad` is put back later.

    Where weights are sharded, what arrives is this process's part of the mean over processes.
    """

    def add(name: str, parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        total[name].add_(gradient, alpha=PartialState().num_processes if isinstance(gradient, DTensor) else 1)

    before = {name: parameter.grad for name, parameter in parameters.items()}
    handles = []
    for name, parameter in parameters.items():
        parameter.grad = None
        handles.append(parameter.register_post_accumulate_grad_hook(partial(add, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.grad = before[name]


@torch.enable_grad()
def _add_batch(model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[int], float]], *, counts: bool) -> None:
    """Goes forward and back over some rows; with weights of zero where they do not count."""
    device = next(model.parameters()).device
    batch = collate_rows([(prompt, completion) for prompt, completion, _ in rows]).to(device)
    weights = torch.tensor([counts * weight for *_, weight in rows], dtype=torch.float64, device=device)
    logps = run_inside(model, lambda: compute_completion_logps(model, batch))
    if logps.requires_grad:  # else none of the parameters has a part in it
        (logps @ weights).backward()


def _sum_type(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
