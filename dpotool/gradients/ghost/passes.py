"""One forward pass over a batch of pairs, and one backward pass of the summed log-probabilities, with taps in place.

Rows do not interact, so the gradient of the sum carries each row's own output gradients. All parameters are frozen: the
backward pass carries activations only. The output layer is taken pair by pair (a few at a time), forward and back, so
that its logits never exist for the whole batch and nothing of it is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.ghost.layout import TokenLayout, lay_out_completions
from dpotool.gradients.ghost.taps import Taps
from dpotool.likelihood.batch import CompletionBatch
from dpotool.likelihood.completions import (
    CompletionStates,
    TokenLogps,
    can_split_head,
    compute_completion_logps,
    compute_completion_states,
    compute_state_logps,
    count_chunk_elements,
    count_head_rows,
    get_causal_lm,
)
from dpotool.likelihood.processes import run_inside

PORTION_ELEMENTS = 2**21
"""Logits alive at a time (8 MiB in float32) where the output layer goes forward and back portion by portion, which is
free; a pair that has more forms one portion."""
PORTION_ELEMENTS_ON_GPU = 2**26
"""The same on an accelerator, where a portion must keep it busy while the operations of the next one are queued."""


def forward_tapped(
    model: nn.Module, pairs: Sequence[TokenizedPair], batch: CompletionBatch, layout: TokenLayout, taps: Taps
) -> Float[Tensor, " rows"]:
    """Runs the forward pass alone, for somebody else's backward pass; returns log pi of every row (nats, float64).

    The output layer runs in portions of whole pairs, which are computed again on the way back where they are several,
    so that the logits of only one are alive; with the random state of the first time, as an adapter on the output layer
    may have dropout. Call `taps.end_forward` when the backward pass is over.
    """
    taps.layout = layout
    if not can_split_head(get_causal_lm(model)):
        with taps:
            return compute_completion_logps(model, batch)
    with taps:
        states = compute_completion_states(model, batch)
    groups = list(_iter_groups(model, pairs, states, count_chunk_elements(states.hidden.device)))
    logps = []
    for tokens, group_layout in groups:
        place = _AtLayout(taps, group_layout)
        arguments = (model, states.hidden[tokens], states.token_ids[tokens])
        with place:
            logps.append(
                compute_state_logps(*arguments)
                if len(groups) == 1
                else checkpoint(
                    compute_state_logps,
                    *arguments,
                    use_reentrant=False,
                    context_fn=partial(_enter_again, place),
                )
            )
    return TokenLogps(torch.cat(logps), states.rows, states.token_ids).sum_by_row(len(batch.input_ids))


class _AtLayout:
    """Taps in place with the layout of one portion of the output layer, whenever that is entered."""

    def __init__(self, taps: Taps, layout: TokenLayout) -> None:
        self._taps = taps
        self._layout = layout
        self._kept: TokenLayout | None = None

    def __enter__(self) -> None:
        self._kept, self._taps.layout = self._taps.layout, self._layout
        self._taps.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._taps.__exit__(*error)
        self._taps.layout = self._kept


def _enter_again(place: _AtLayout) -> tuple[AbstractContextManager[None], _AtLayout]:
    """What checkpointing enters for the first time, and while it computes again."""
    return nullcontext(), place


@torch.enable_grad()
def run_tapped(
    model: nn.Module, pairs: Sequence[TokenizedPair], batch: CompletionBatch, layout: TokenLayout, taps: Taps
) -> Float[Tensor, " rows"]:
    """Runs both passes, in `ghost.modes.differentiating_activations`; returns log pi of every row (nats, float64)."""

    def forward() -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns where the backward pass begins, with which gradient, and log pi of every row."""
        taps.layout = layout
        if not can_split_head(get_causal_lm(model)):
            with taps:
                logps = compute_completion_logps(model, batch)
            return logps.sum(), None, logps.detach()
        with taps:
            states = compute_completion_states(model, batch)
        taps.end_forward()
        token_logps, hidden_grad = _run_output_layer(model, pairs, states, taps)
        summed = TokenLogps(token_logps, states.rows, states.token_ids).sum_by_row(len(batch.input_ids))
        return states.hidden, hidden_grad, summed

    start, grad, logps = run_inside(model, forward)
    taps.layout = layout
    _go_back(taps, start, grad)
    return logps


def _run_output_layer(
    model: nn.Module, pairs: Sequence[TokenizedPair], states: CompletionStates, taps: Taps
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens hidden"] | None]:
    """Returns each token's log-probability and the gradient of their sum in the hidden states."""
    logps, grads = [], []
    n_elements = PORTION_ELEMENTS if states.hidden.device.type == "cpu" else PORTION_ELEMENTS_ON_GPU
    for tokens, layout in _iter_groups(model, pairs, states, n_elements):
        hidden = states.hidden[tokens].detach().requires_grad_(states.hidden.requires_grad)
        taps.layout = layout
        with taps:
            group_logps = compute_state_logps(model, hidden, states.token_ids[tokens])
        _go_back(taps, group_logps.sum())
        logps.append(group_logps.detach())
        grads.append(hidden.grad)
    has_grad = all(grad is not None for grad in grads)
    return torch.cat(logps), torch.cat(grads) if has_grad else None  # type: ignore[arg-type]


def _iter_groups(
    model: nn.Module, pairs: Sequence[TokenizedPair], states: CompletionStates, n_elements: int
) -> Iterator[tuple[slice, TokenLayout]]:
    """Yields the completion tokens of a few whole pairs, with at most `n_elements` logits, and how they lie."""
    start = 0
    for first, group in _group_pairs(model, pairs, n_elements):
        stop = start + sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in group)
        yield slice(start, stop), lay_out_completions(group, first, states.rows[start:stop])
        start = stop


def _group_pairs(
    model: nn.Module, pairs: Sequence[TokenizedPair], n_elements: int
) -> Iterator[tuple[int, Sequence[TokenizedPair]]]:
    """Yields groups of whole pairs, with the number of the first."""
    budget = n_elements // count_head_rows(get_causal_lm(model))
    first, n_tokens = 0, 0
    for place, pair in enumerate(pairs):
        n_more = len(pair.chosen_ids) + len(pair.rejected_ids)
        if place > first and n_tokens + n_more > budget:
            yield first, pairs[first:place]
            first, n_tokens = place, 0
        n_tokens += n_more
    yield first, pairs[first:]


def _go_back(taps: Taps, value: Tensor, grad: Tensor | None = None) -> None:
    taps.end_forward()
    if value.requires_grad:
        value.backward(grad)
