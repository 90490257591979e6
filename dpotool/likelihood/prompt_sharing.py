"""Tests whether a model gives the same numbers when chosen and rejected share a row.

Three probe pairs go through the decoder in both layouts. Models fail that know no position ids or count distances
themselves (alibi), that carry a state from token to token, whose attention takes no mask of its own, or whose window is
shorter than the probe. A longer window shows in the configuration; rows are then kept within it.
"""

from __future__ import annotations

import logging
import re
import sys
import weakref
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import (
    can_split_head,
    compute_completion_logps,
    compute_completion_states,
    get_causal_lm,
)
from dpotool.likelihood.shared_rows import collate_shared
from dpotool.models.determinism import find_length_switches
from dpotool.models.precision import in_full_float32

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
