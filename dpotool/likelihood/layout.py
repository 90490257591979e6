"""Which layout a batch gets: rows with a shared prompt, or a row for each completion; the numbers are the same.

By what either costs. A token costs the linear layers 24 hidden² operations, and attention 4 hidden times the row's
length; a masked square is computed whole, a causal one by halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import CompletionBatch, collate_pairs
from dpotool.likelihood.budget import find_hidden_size, plan_batches
from dpotool.likelihood.prompt_sharing import find_row_limit
from dpotool.likelihood.shared_rows import SharedBatch, collate_shared, count_shared_tokens, pack_rows
from dpotool.settings.shared import LAYOUTS

AUTO, SHARED, PAIRED = LAYOUTS

MASKED_ATTENTION = 0.4
CAUSAL_ATTENTION = 0.3
"""Cost of attention per token of the row and unit of hidden size, in a token's linear work. By operations it would be
1/6 and 1/12; attention reaches a smaller share of a CPU's rate than matrix products do, causal attention the smallest
(SmolLM2-135M, one thread, float32, rows of 345 to 390 tokens)."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Lays out pairs for one model."""

    row_limit: int
    """Tokens a shared row may have; 0: none is shared."""
    hidden_size: int
    is_forced: bool = False
    """Share wherever the limit allows, whatever it costs."""

    @classmethod
    def of(cls, model: nn.Module, choice: str = AUTO) -> RowLayout:
        """Returns the layout for a model.

        Args:
            choice: auto, by cost; shared, wherever the model can; paired, never shared.
        """
        limit = 0 if choice == PAIRED else find_row_limit(model)
        return cls(limit, find_hidden_size(model), is_forced=choice == SHARED)

    def shares(self, pair: TokenizedPair) -> bool:
        """Tells whether the two rows of this pair should share their prompt."""
        return self._is_shared_better([pair], with_rejected=True)

    def plan(self, pairs: Sequence[TokenizedPair], batch_tokens: int) -> list[list[int]]:
        """Groups pairs into batches of at most `batch_tokens` padded tokens, each of one layout (`plan_batches`).

        The layout of a pair does not depend on what else is in the batch.
        """
        is_shared = [self.shares(pair) for pair in pairs]
        batches: list[list[int]] = []
        for shared in (True, False):
            members = [index for index, shares in enumerate(is_shared) if shares == shared]
            lengths = [count_shared_tokens(pairs[i]) if shared else 2 * pairs[i].longest for i in members]
            batches += [[members[place] for place in batch] for batch in plan_batches(lengths, batch_tokens)]
        return sorted(batches, key=lambda batch: -len(batch) * max(pairs[index].longest for index in batch))

    def collate(self, pairs: Sequence[TokenizedPair]) -> CompletionBatch | SharedBatch:
        """Lays out a batch of `plan`."""
        return collate_shared(pairs) if all(map(self.shares, pairs)) else collate_pairs(pairs)

    def collate_step(
        self, pairs: Sequence[TokenizedPair], *, with_rejected: bool = True
    ) -> CompletionBatch | SharedBatch:
        """Lays out pairs that belong together in a training step, all in the layout that is cheaper for them."""
        collate = collate_shared if self._is_shared_better(pairs, with_rejected=with_rejected) else collate_pairs
        return collate(pairs, with_rejected=with_rejected)

    def _is_shared_better(self, pairs: Sequence[TokenizedPair], *, with_rejected: bool) -> bool:
        lengths = [count_shared_tokens(pair, with_rejected=with_rejected) for pair in pairs]
        if max(lengths) > self.row_limit or self.is_forced:
            return max(lengths) <= self.row_limit
        longest = max(pair.longest if with_rejected else length for pair, length in zip(pairs, lengths, strict=True))
        shared = self._cost(len(pack_rows(lengths)), max(lengths), MASKED_ATTENTION)
        paired = self._cost(len(pairs) * (2 if with_rejected else 1), longest, CAUSAL_ATTENTION)
        return shared < paired

    def _cost(self, n_rows: int, n_tokens: int, attention: float) -> float:
        return n_rows * n_tokens * (1 + attention * n_tokens / self.hidden_size)
