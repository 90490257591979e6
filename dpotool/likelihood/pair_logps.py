"""Log-probabilities of many pairs: length-sorted token-budget batches, shared out over processes, order restored.

Those that are not finite are never `ok`, never in a mean, never trained on. A weight that is not a number makes every
pair so, or only those with a certain token; a model in float16 can overflow on long pairs. A row that is not finite is
computed again by itself, since beside others it would spoil theirs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Float64
from torch import Tensor, nn

from dpotool.data.pairs import PairSet, TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood.batch import CompletionBatch, SharedBatch, collate_rows
from dpotool.likelihood.budget import MOST_TOKENS, Plan, R, resolve_batch_tokens, run_within_memory
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.processes import is_sharded, score_tokens, share_in_step, share_out
from dpotool.models.weights import list_non_finite
from dpotool.settings.shared import AUTO
from dpotool.wording import count

DEFAULT_BATCH_TOKENS = MOST_TOKENS["cpu"]
"""Padded tokens per batch."""

Advance = Callable[[int], None]
"""Takes numbers of pairs as they are finished."""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """What scoring a batch gives for one pair."""

    index: int
    """Index among the pairs that the caller passed."""
    chosen: np.ndarray
    rejected: np.ndarray
    """Log-probability of each completion token (nats, float32 or better)."""

    @property
    def sums(self) -> tuple[float, float]:
        """log pi of the chosen and of the rejected completion, nats."""
        return float(self.chosen.sum(dtype=np.float64)), float(self.rejected.sum(dtype=np.float64))

    @property
    def is_finite(self) -> bool:
        return all(math.isfinite(logp) for logp in self.sums)


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """log pi of each pair's chosen and rejected completion under one model, in the order of the pairs passed.

    Sums over completion tokens (EOS included), nats, float64.
    """

    chosen: Float64[np.ndarray, " pairs"]
    rejected: Float64[np.ndarray, " pairs"]
    tokens: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Per pair, the chosen and the rejected completion's per-token log-probabilities (float32); only on request."""
    n_shared: int = 0
    """How many were computed with their prompt shared (`likelihood.layout`); of pairs that repeat another, one is."""
    n_paired: int = 0
    """How many were computed in a row for each completion."""
    n_stored: int = 0
    """How many of the pairs were found in the store."""

    @property
    def layouts(self) -> dict[str, int]:
        return {"shared": self.n_shared, "paired": self.n_paired, "stored": self.n_stored}

    def take(self, places: Sequence[int]) -> ScoredPairs:
        """Returns the values of some of the pairs, by their places."""
        kept = list(places)
        tokens = [self.tokens[place] for place in kept] if self.tokens else []
        return replace(self, chosen=self.chosen[kept], rejected=self.rejected[kept], tokens=tokens)

    def stack(self) -> Float64[np.ndarray, "pairs 2"]:
        """Returns chosen, then rejected."""
        return np.stack([self.chosen, self.rejected], axis=1)


def compute_pair_logps(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    *,
    batch_tokens: int | str = DEFAULT_BATCH_TOKENS,
    autocast: torch.dtype | None = None,
    layout: str = AUTO,
    with_tokens: bool = False,
    on_progress: Advance | None = None,
    on_scored: Callable[[Sequence[ScoredPair]], None] | None = None,
) -> ScoredPairs:
    """Scores every pair under the model; no gradients, dropout off, the model's mode restored.

    Args:
        batch_tokens: budget of padded tokens a batch, or 'auto' (`resolve_batch_tokens`); a pair that alone exceeds it
            gets a batch of its own. A batch that runs out of memory is halved and tried again.
        autocast: mixed-precision type for matrix products, as in a `--bf16` training run.
        layout: of the rows, auto, shared or paired (`RowLayout`).
        with_tokens: also return per-token values.
        on_progress: called with the number of pairs each finished batch held.
        on_scored: called with this process's pairs as each batch is finished.

    Raises:
        DpotoolError: memory does not hold a single pair.
    """
    rows = RowLayout.of(model, layout)

    def plan(places: Sequence[int], budget: int) -> list[list[int]]:
        batches = rows.plan([pairs[place] for place in places], budget)
        return [[places[index] for index in batch] for batch in batches]

    def run(batch: Sequence[int]) -> list[ScoredPair]:
        return _score_batch(model, [pairs[index] for index in batch], batch, rows, autocast)

    batches = plan(range(len(pairs)), resolve_batch_tokens(batch_tokens, model, pairs))
    state = PartialState()
    finished: list[ScoredPair] = []
    results = run_shares(model, pairs, batches, run, plan=plan if batch_tokens == AUTO else None)
    for batch, scored in results:
        finished += scored
        if on_scored is not None:
            on_scored(scored)
        if on_progress is not None:
            on_progress(len(batch) * state.num_processes)
    if state.num_processes > 1:
        finished = gather_object(finished)
    return _assemble(finished, len(pairs), sum(map(rows.shares, pairs)), with_tokens=with_tokens)


def run_shares(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    batches: Sequence[Sequence[int]],
    run: Callable[[Sequence[int]], R],
    *,
    plan: Plan | None = None,
) -> Iterator[tuple[Sequence[int], R]]:
    """Runs this process's batches (places in `pairs`), and yields each with what came of it (`run_within_memory`).

    Where weights are sharded, all processes run equally many, and none is halved where memory is short: the others
    would wait for its second half for ever.
    """
    if not is_sharded(model):
        yield from run_within_memory(pairs, share_out(batches), run, plan=plan)
        return
    for batch, counts in share_in_step(batches):
        result = run(batch)
        if counts:
            yield batch, result


def _assemble(finished: list[ScoredPair], n_pairs: int, n_shared: int, *, with_tokens: bool) -> ScoredPairs:
    ordered = sorted(finished, key=lambda pair: pair.index)
    if [pair.index for pair in ordered] != list(range(n_pairs)):
        raise RuntimeError(f"expected each of {count(n_pairs, 'pair')} scored exactly once, got {len(ordered)} results")
    sums = np.array([pair.sums for pair in ordered], dtype=np.float64).reshape(-1, 2)
    tokens = [(pair.chosen, pair.rejected) for pair in ordered] if with_tokens else []
    return ScoredPairs(sums[:, 0].copy(), sums[:, 1].copy(), tokens, n_shared, n_pairs - n_shared)


def _score_batch(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    indices: Sequence[int],
    layout: RowLayout,
    autocast: torch.dtype | None,
) -> list[ScoredPair]:
    """Scores a batch; a pair whose result is not finite is scored again alone, in a row for each completion.

    A token whose embedding is not a number spoils what shares its row or its experts. Not where weights are sharded:
    the other processes would not take part in the second pass.
    """
    logps = _run(model, layout.collate(pairs), autocast)
    lengths = [length for pair in pairs for length in (len(pair.chosen_ids), len(pair.rejected_ids))]
    rows = np.split(logps, np.cumsum(lengths)[:-1])
    scored = [ScoredPair(index, rows[2 * row], rows[2 * row + 1]) for row, index in enumerate(indices)]
    return [
        one if one.is_finite or is_sharded(model) else _score_alone(model, pair, one.index, autocast)
        for one, pair in zip(scored, pairs, strict=True)
    ]


def _score_alone(model: nn.Module, pair: TokenizedPair, index: int, autocast: torch.dtype | None) -> ScoredPair:
    completions = (pair.chosen_ids, pair.rejected_ids)
    return ScoredPair(index, *(_run(model, collate_rows([(pair.prompt_ids, ids)]), autocast) for ids in completions))


@torch.no_grad()
def _run(model: nn.Module, batch: CompletionBatch | SharedBatch, autocast: torch.dtype | None) -> np.ndarray:
    """Returns the log-probabilities of a batch's completion tokens, dropout off, the model's mode restored."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with autocast_to(autocast, device):
            return _to_numpy(score_tokens(model, batch.to(device)))
    finally:
        model.train(was_training)


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Returns torch's autocast for a mixed-precision type, or nothing for None."""
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


_SHOWN = 5


def leave_out_non_finite(
    pair_set: PairSet, scored: Mapping[str, tuple[nn.Module, ScoredPairs]]
) -> tuple[PairSet, dict[str, ScoredPairs]]:
    """Returns the pairs that are finite under every model, with their values; the others are excluded by reason.

    Args:
        scored: name used in messages ('the model', 'the reference') -> the model and its values.

    Raises:
        DpotoolError: not one pair is left; it names weights that are not finite.
    """
    reasons: dict[int, str] = {}
    for name, (_, logps) in scored.items():
        for place in find_non_finite(logps):
            reasons.setdefault(pair_set.pairs[place].pair_id, f"its log-probability under {name} is not finite")
    values = {name: logps for name, (_, logps) in scored.items()}
    if not reasons:
        return pair_set, values
    if len(reasons) == len(pair_set.pairs):
        for name, (model, logps) in scored.items():
            refuse_non_finite(model, pair_set.pairs, logps, name)
    places = [place for place, pair in enumerate(pair_set.pairs) if pair.pair_id not in reasons]
    return pair_set.without(reasons), {name: logps.take(places) for name, logps in values.items()}


def find_non_finite(logps: ScoredPairs) -> list[int]:
    """Returns the places of the pairs of which a completion's log-probability is not finite."""
    return [int(place) for place in np.flatnonzero(~np.isfinite(logps.stack()).all(axis=1))]


def refuse_non_finite(model: nn.Module, pairs: Sequence[TokenizedPair], logps: ScoredPairs, name: str) -> None:
    """Raises a `DpotoolError` if a pair's log-probability is not finite, and says which and for which weights."""
    places = find_non_finite(logps)
    if not places:
        return
    weights = list_non_finite(model)
    shown = ", ".join(str(pairs[place].pair_id) for place in places[:_SHOWN])
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    raise DpotoolError(
        f"log-probabilities under {name} are not finite for {len(places)} of {count(len(pairs), 'pair')} "
        f"({shown}{more})",
        expected="finite weights" if weights else None,
        got=f"numbers that are not finite in {', '.join(weights[:_SHOWN])}" if weights else None,
        remedy="Name another checkpoint, or leave these pairs out" if weights else "Use --dtype float32 or bfloat16",
    )
