"""What one model makes of a batch of pairs: the decoder runs once, and measures then ask for what they need of it.

`score` wants one number a completion. Whoever looks inside a pair wants more of the same forward pass: every token's
log-probability, the hidden states that predict it, or the whole distribution at some positions. Logits exist for a few
positions at a time only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import PartialState
from jaxtyping import Float, Int
from torch import Tensor

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import CompletionBatch, SharedBatch
from dpotool.likelihood.budget import resolve_batch_tokens, run_within_memory
from dpotool.likelihood.completions import (
    apply_head,
    call_decoder,
    call_model_for_states,
    can_split_head,
    chunked_logps,
    count_chunk_elements,
    gather_logps,
    get_causal_lm,
)
from dpotool.likelihood.pair_logps import autocast_to
from dpotool.likelihood.scorer import Scorer
from dpotool.settings.shared import AUTO


class CompletionView:
    """One model's forward pass over a batch. Tokens are flat, completion after completion: chosen_0, rejected_0, ..."""

    def __init__(self, scorer: Scorer, batch: CompletionBatch | SharedBatch) -> None:
        """Runs the decoder; nothing of the output layer yet."""
        self._model = get_causal_lm(scorer.model)
        self._autocast = scorer.autocast
        targets, ends = batch.find_targets(), batch.find_ends()
        self.completions = targets.completions  # (tokens,): which completion each token belongs to
        self.token_ids = targets.token_ids  # (tokens,)
        self.n_completions = batch.n_completions
        with self._computing():
            self._logits: Tensor | None = None
            if can_split_head(self._model):
                hidden = call_decoder(self._model, batch)  # (rows, seq, hidden)
            else:
                logits, hidden = call_model_for_states(self._model, batch)
                self._logits = logits[targets.rows, targets.positions]  # (tokens, vocab)
            self.states = hidden[targets.rows, targets.positions]
            """(tokens, hidden): the state that predicts each token, the decoder's output (`hidden_states[-1]`)."""
            self.end_states = hidden[ends.rows, ends.positions]
            """(completions, hidden): the state at each completion's last token, which predicts nothing of it."""

    @cached_property
    def logps(self) -> Float[Tensor, " tokens"]:
        """log pi of every completion token given all before it, nats, float32 or better."""
        with self._computing():
            if self._logits is not None:
                return gather_logps(self._logits, self.token_ids)
            return chunked_logps(self._model, self.states, self.token_ids)

    @property
    def chunk_size(self) -> int:
        """Positions whose whole distributions may be alive at a time."""
        return max(
            1, count_chunk_elements(self.token_ids.device) // self._model.get_output_embeddings().weight.shape[0]
        )

    def compute_distributions(self, places: Int[Tensor, " n"]) -> Float[Tensor, "n vocab"]:
        """Returns log pi of every vocabulary item at some tokens' positions; nats, float32 or better."""
        with self._computing():
            logits = apply_head(self._model, self.states[places]) if self._logits is None else self._logits[places]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.log_softmax(dim=1)

    def has_plain_head(self) -> bool:
        """Tells whether the logits are the output layer's product with the states and nothing else, seen on one."""
        head: Any = self._model.get_output_embeddings()
        if self._logits is not None or not len(self.states) or head is None:
            return False
        with self._computing():
            got, plain = apply_head(self._model, self.states[:1]).double(), head(self.states[:1]).double()
        return got.shape == plain.shape and bool((got - plain).abs().max() <= 1e-3 * plain.abs().max())

    def sum_states(self) -> Float[Tensor, "completions hidden"]:
        """Sums each completion's predicting states, in float64."""
        sums = self.states.new_zeros(self.n_completions, self.states.shape[1], dtype=torch.float64)
        return sums.index_add(0, self.completions, self.states.double())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with torch.no_grad(), autocast_to(self._autocast, self.token_ids.device):
            yield


@dataclass(frozen=True, slots=True)
class PairView:
    """A batch of pairs under the policy and, where there is one, under the reference."""

    places: Sequence[int]
    """Which of the pairs that were asked for these are."""
    pairs: Sequence[TokenizedPair]
    policy: CompletionView
    reference: CompletionView | None


def iter_views(policy: Scorer, reference: Scorer | None, pairs: Sequence[TokenizedPair]) -> Iterator[PairView]:
    """Runs both models over this process's share of the pairs, batch by batch; a batch too large is halved.

    Each view is dropped before the next is made, so what is to last must be taken from it.

    Raises:
        DpotoolError: memory does not hold a single pair.
    """
    rows = policy.rows
    budget = resolve_batch_tokens(policy.batch_tokens, policy.model, pairs)

    def plan(places: Sequence[int], most: int) -> list[list[int]]:
        return [[places[index] for index in batch] for batch in rows.plan([pairs[place] for place in places], most)]

    def run(batch: Sequence[int]) -> PairView:
        members = [pairs[place] for place in batch]
        return PairView(batch, members, _view(policy, members), _view(reference, members) if reference else None)

    state = PartialState()
    share = plan(range(len(pairs)), budget)[state.process_index :: state.num_processes]
    for _, view in run_within_memory(pairs, share, run, plan=plan if policy.batch_tokens == AUTO else None):
        yield view


def _view(scorer: Scorer, pairs: Sequence[TokenizedPair]) -> CompletionView:
    was_training = scorer.model.training
    scorer.model.eval()
    try:
        return CompletionView(scorer, scorer.rows.collate(pairs).to(scorer.device))
    finally:
        scorer.model.train(was_training)
