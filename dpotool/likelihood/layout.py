"""Which layout a batch gets: rows with a shared prompt, or a row for each completion; the numbers are the same.

By what either costs: a token costs the linear layers 24 hidden² operations, and attention 4 hidden times the row's
length; a masked square is computed whole, a causal one by halves. And only where the model can: three probe pairs go
through the decoder in both layouts. Models fail that know no position ids or count distances themselves (alibi), that
carry a state from token to token, whose attention takes no mask of its own, or whose window is shorter than the probe.
A longer window shows in the configuration; rows are then kept within it.
"""

from __future__ import annotations

import logging
import re
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import (
    CompletionBatch,
    SharedBatch,
    collate_pairs,
    collate_shared,
    count_shared_tokens,
    pack_rows,
)
from dpotool.likelihood.budget import find_hidden_size, plan_batches
from dpotool.likelihood.completions import (
    can_split_head,
    compute_completion_logps,
    compute_completion_states,
    get_causal_lm,
)
from dpotool.models.determinism import find_length_switches
from dpotool.models.precision import in_full_float32
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


logger = logging.getLogger(__name__)

NO_LIMIT = sys.maxsize
SPANS = re.compile(r"(window|window_size|chunk_size|index_topk|index_topk_blocks)$")
"""Settings that say how many tokens an attention layer spans, or how many it picks (DeepSeek-V3.2's sparse attention),
and none like `max_window_layers`. Beyond them a shared row is another one, which no short probe sees.
"""
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Relative difference of a state between the layouts; rounding alone is 1e-6 in float32 (float64: norms and soft-max in
float32, where an architecture takes them so)."""
COARSE_TOLERANCE = 0.1
"""The same in 16 bits; what leaks from one completion into the other is then found by `COARSE_LEAK`."""
COARSE_LEAK = 0.02
"""In 16 bits, relative change of a completion's states when the other one's tokens change: 0 where nothing leaks."""

_limits: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def find_row_limit(model: nn.Module) -> int:
    """Returns how many tokens a shared row may have; 0 if the model cannot take one. Found out once per model."""
    causal_lm = get_causal_lm(model)
    if causal_lm not in _limits:
        _limits[causal_lm] = _find_limit(causal_lm)
    return _limits[causal_lm]


def _find_limit(model: PreTrainedModel) -> int:
    if not can_split_head(model):
        return 0
    if not _check_sharing(model):
        name = type(model).__name__
        logger.warning("%s: chosen and rejected cannot share a prompt here; each gets a row of its own", name)
        return 0
    return min(_read_spans(model), default=NO_LIMIT)


def _read_spans(model: PreTrainedModel) -> list[int]:
    """Lists what the configuration says of windows, chunks, the longest row and rotary factors, in tokens.

    Within them a mask of one's own may stand for a window's, and beside one that counts the tokens of a row; and chosen
    and rejected take the same rotary factors.
    """
    config = model.config.get_text_config()
    names = {name for name in vars(config) if SPANS.search(name)} | {"max_position_embeddings"}  # GPT-2: n_positions
    values = [getattr(config, name, None) for name in names]
    spans = [value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0]
    return spans + find_length_switches(config)


@torch.no_grad()
def draws_in_training(model: nn.Module) -> bool:
    """Tells whether the model computes differently each time in training (dropout, noise in a router).

    Rows of their own give chosen and rejected draws of their own, a shared row one for both. Dropout counts where it is
    switched on, even if nothing shows yet: a new adapter's second factor is zero.
    """
    if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules()):
        return True
    device = next(model.parameters()).device
    probe = collate_pairs(_make_probe(get_causal_lm(model).config.get_text_config().vocab_size)[0]).to(device)
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the run's own draws stay as they were
            first, second = (compute_completion_logps(model, probe) for _ in range(2))
    finally:
        model.train(was_training)
    return not torch.equal(first, second)


@torch.no_grad()
def _check_sharing(model: PreTrainedModel) -> bool:
    """Compares the states that predict the probe's completion tokens in both layouts."""
    pairs, changed = _make_probe(model.config.get_text_config().vocab_size)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(device.type, enabled=False), in_full_float32():
            expected = compute_completion_states(model, collate_pairs(pairs).to(device)).hidden
            states = compute_completion_states(model, collate_shared(pairs).to(device))
            others = compute_completion_states(model, collate_shared(changed).to(device)).hidden
    except (TypeError, AttributeError, ValueError, IndexError, RuntimeError, NotImplementedError):
        return False
    finally:
        model.train(was_training)
    tolerance = TOLERANCES.get(states.hidden.dtype, COARSE_TOLERANCE)
    is_rejected = states.rows % 2 == 1
    leak = _differ(others[is_rejected], states.hidden[is_rejected])
    return _differ(states.hidden, expected) <= tolerance and leak <= min(tolerance, COARSE_LEAK)


def _differ(states: Tensor, expected: Tensor) -> float:
    """Returns the largest relative difference of a state; infinite where something is not a number."""
    difference = (states - expected).double().norm(dim=1) / expected.double().norm(dim=1).clamp(min=1e-30)
    return float(difference.nan_to_num(float("inf")).max())


def _make_probe(vocab_size: int) -> tuple[list[TokenizedPair], list[TokenizedPair]]:
    """Returns pairs that fill two rows, one with two of them and one with padding, and the same with chosen changed."""
    lengths = ((9, 12, 11), (5, 4, 6), (4, 7, 8))  # prompt, chosen, rejected
    step = iter(range(1, 1000))

    def ids(n_tokens: int) -> tuple[int, ...]:
        return tuple(7 * next(step) % (vocab_size - 1) + 1 for _ in range(n_tokens))

    pairs = [TokenizedPair(number, ids(p), ids(c), ids(r)) for number, (p, c, r) in enumerate(lengths)]
    return pairs, [replace(pair, chosen_ids=ids(len(pair.chosen_ids))) for pair in pairs]
