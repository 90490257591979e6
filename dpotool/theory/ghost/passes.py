"""One forward pass over a batch of pairs, and one backward pass of the summed log-probabilities, with taps in place.

Rows do not interact, so the gradient of the sum carries each row's own output gradients. All parameters are frozen: the
backward pass carries activations only. The output layer is taken pair by pair (a few at a time), forward and back, so
that its logits never exist for the whole batch and nothing of it is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import CompletionBatch
from dpotool.likelihood.completions import (
    CHUNK_ELEMENTS,
    CompletionStates,
    TokenLogps,
    can_split_head,
    compute_completion_logps,
    compute_completion_states,
    compute_state_logps,
    get_causal_lm,
)
from dpotool.theory.ghost.layout import TokenLayout, lay_out_completions
from dpotool.theory.ghost.taps import Taps


@torch.enable_grad()
def run_tapped(
    model: nn.Module, pairs: Sequence[TokenizedPair], batch: CompletionBatch, layout: TokenLayout, taps: Taps
) -> Float[Tensor, " rows"]:
    """Runs both passes, in `ghost.modes.differentiating_activations`; returns log pi of every row (nats, float64)."""
    n_rows = len(batch.input_ids)
    taps.layout = layout
    if not can_split_head(get_causal_lm(model)):
        with taps:
            logps = compute_completion_logps(model, batch)
        _go_back(taps, logps.sum())
        return logps.detach()
    with taps:
        states = compute_completion_states(model, batch)
    taps.end_forward()
    token_logps, hidden_grad = _run_output_layer(model, pairs, states, taps)
    taps.layout = layout
    _go_back(taps, states.hidden, hidden_grad)
    return TokenLogps(token_logps, states.rows, states.token_ids).sum_by_row(n_rows)


def _run_output_layer(
    model: nn.Module, pairs: Sequence[TokenizedPair], states: CompletionStates, taps: Taps
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens hidden"] | None]:
    """Returns each token's log-probability and the gradient of their sum in the hidden states."""
    logps, grads, start = [], [], 0
    for first, group in _group_pairs(model, pairs):
        stop = start + sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in group)
        hidden = states.hidden[start:stop].detach().requires_grad_(states.hidden.requires_grad)
        taps.layout = lay_out_completions(group, first, states.rows[start:stop])
        with taps:
            group_logps = compute_state_logps(model, hidden, states.token_ids[start:stop])
        _go_back(taps, group_logps.sum())
        logps.append(group_logps.detach())
        grads.append(hidden.grad)
        start = stop
    has_grad = all(grad is not None for grad in grads)
    return torch.cat(logps), torch.cat(grads) if has_grad else None  # type: ignore[arg-type]


def _group_pairs(model: nn.Module, pairs: Sequence[TokenizedPair]) -> Iterator[tuple[int, Sequence[TokenizedPair]]]:
    """Yields groups of whole pairs, with the number of the first, whose logits stay within the usual size."""
    budget = CHUNK_ELEMENTS // get_causal_lm(model).get_output_embeddings().weight.shape[0]
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
