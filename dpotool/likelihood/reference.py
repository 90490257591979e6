"""Reference log-probabilities, computed once per pair and kept under a key of content.

The key of a pair is a hash of what its values depend on: the reference model's weights and settings, the numeric
types, and the pair's token ids with the boundary, which hold all that tokenizer and chat template do. So a second run,
a sweep, a subset and a superset all find what was computed before, and a changed weight or template finds nothing.
What only moves values within rounding is not in the key: how pairs were batched and laid out, the attention
implementation, the device and its matrix library, the versions of torch and transformers (recorded beside the values).
Files and their handling: `dpotool.cache`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from dpotool.cache.entries import name_store, record_use
from dpotool.cache.parts import Values, merge_parts, read_parts, write_part
from dpotool.cache.root import reference_root
from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood.pair_logps import DEFAULT_BATCH_TOKENS, PairLogpArrays, Progress, ScoredPair, compute_pair_logps
from dpotool.models.fingerprint import fingerprint_model
from dpotool.settings import AUTO

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 60.0
"""What is computed is kept at least this often, and at every way out but a kill."""


@dataclass(frozen=True, slots=True)
class ReferenceLogps:
    """Reference values for a list of pairs, in its order."""

    chosen: np.ndarray
    rejected: np.ndarray
    n_cached: int
    """How many of the pairs were found in the store."""
    fingerprint: str
    """Of the reference model's weights."""
    n_shared: int = 0
    n_paired: int = 0
    """How many were computed in which layout; pairs that repeat another are computed once."""
    tokens: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """As in `PairLogpArrays`, on request."""

    @property
    def layouts(self) -> dict[str, int]:
        return {"shared": self.n_shared, "paired": self.n_paired, "stored": self.n_cached}

    def stack(self) -> np.ndarray:
        """Returns (pairs, 2): chosen, then rejected."""
        return np.stack([self.chosen, self.rejected], axis=1)


def load_or_compute_reference(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    *,
    batch_tokens: int | str = DEFAULT_BATCH_TOKENS,
    autocast: torch.dtype | None = None,
    layout: str = AUTO,
    store: Path | None = None,
    label: str | None = None,
    fingerprint: str | None = None,
    with_tokens: bool = False,
    on_progress: Progress | None = None,
) -> ReferenceLogps:
    """Returns log pi_ref of every pair's chosen and rejected completion, from the store where it has them.

    Units as in `compute_pair_logps`. Missing pairs are computed and added to the store, in parts while the work goes
    on: a kill loses a minute's work, any other interruption none.

    Args:
        store: folder to keep values in; without it the user's cache.
        label: name or path of the model, for people who look into the store.
        fingerprint: of the model's weights, where it is known already.
        with_tokens: also return per-token values. The store has none, so every pair is computed; the sums of those that
            are stored stay what they were.
    """
    fingerprint = fingerprint or fingerprint_model(model)
    folder = locate_store(model, fingerprint, autocast, root=store)
    keys, known, missing = look_up(folder, pairs)
    todo = dict(zip(keys, pairs, strict=True)) if with_tokens else missing
    if on_progress is not None:
        on_progress(sum(key not in todo for key in keys))
    keeper = StoreKeeper(folder, name_model(model, label))
    computed = PairLogpArrays(np.zeros(0), np.zeros(0))
    if todo:
        compute = partial(
            compute_pair_logps,
            model,
            list(todo.values()),
            batch_tokens=batch_tokens,
            autocast=autocast,
            layout=layout,
            with_tokens=with_tokens,
            on_progress=on_progress,
        )
        computed = _compute_and_keep(compute, keeper, list(todo), missing)
        known = dict(zip(todo, zip(computed.chosen, computed.rejected, strict=True), strict=True)) | known
    elif known:
        keeper.finish()
    values = np.array([known[key] for key in keys], dtype=np.float64).reshape(-1, 2)
    n_cached = sum(key not in missing for key in keys)
    tokens = dict(zip(todo, computed.tokens, strict=True)) if with_tokens else {}
    return ReferenceLogps(
        chosen=values[:, 0].copy(),
        rejected=values[:, 1].copy(),
        n_cached=n_cached,
        fingerprint=fingerprint,
        n_shared=computed.n_shared,
        n_paired=len(todo) - computed.n_shared,
        tokens=[tokens[key] for key in keys] if with_tokens else [],
    )


def _compute_and_keep(
    compute: Callable[..., PairLogpArrays], keeper: StoreKeeper, keys: Sequence[str], wanted: Collection[str]
) -> PairLogpArrays:
    """Returns what `compute` finds for the pairs of these keys; the keeper gets the wanted ones batch by batch."""

    def keep(scored: Sequence[ScoredPair]) -> None:
        new = {keys[pair.index]: pair.sums for pair in scored}
        keeper.take({key: sums for key, sums in new.items() if key in wanted})

    try:
        return compute(on_scored=keep)
    finally:
        keeper.finish()


def find_missing(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    autocast: torch.dtype | None = None,
    *,
    fingerprint: str | None = None,
) -> list[TokenizedPair]:
    """Returns the pairs that the store does not have for this model, each once."""
    folder = locate_store(model, fingerprint or fingerprint_model(model), autocast)
    _, _, missing = look_up(folder, pairs)
    return list(missing.values())


def locate_store(
    model: nn.Module, fingerprint: str, autocast: torch.dtype | None = None, *, root: Path | None = None
) -> Path:
    """Returns the folder with the values of a model of this fingerprint, in the types that it computes in."""
    return (root or reference_root()) / name_store(fingerprint, describe_types(model, autocast))


def look_up(
    folder: Path, pairs: Sequence[TokenizedPair], suffix: str = ""
) -> tuple[list[str], Values, dict[str, TokenizedPair]]:
    """Returns the pairs' keys, the values that the store has of them, and by key the pairs that it lacks.

    Args:
        suffix: of the keys; `cache.entries.SECOND` for second values.
    """
    keys = [hash_pair(pair) + suffix for pair in pairs]
    known = read_known(folder, keys)
    return keys, known, {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}


def describe_types(model: nn.Module, autocast: torch.dtype | None) -> str:
    """Returns the numeric types that values depend on: of the weights, then of mixed precision."""
    return f"{next(model.parameters()).dtype}-{autocast}".replace("torch.", "")


def hash_pair(pair: TokenizedPair) -> str:
    """Returns the key of a pair among one model's values: 32 hex digits of its token ids and their boundary."""
    text = "|".join(",".join(map(str, ids)) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_known(folder: Path, keys: Sequence[str]) -> Values:
    """Returns what the store has of these keys; of several processes all see what the first one read.

    They must agree on what is left to compute, and another command may be adding to the store meanwhile.
    """
    found: list[Values] = [{}]
    if PartialState().is_main_process:
        parts = read_parts(folder)
        found = [{key: parts.values[key] for key in keys if key in parts.values}]
        if not found[0].keys() >= set(keys):  # else nothing is computed again, whatever the file held
            for path, reason in parts.unreadable.items():
                logger.warning("%s: damaged, so values in it are computed again (%s); delete it", path, reason)
    if PartialState().num_processes > 1:
        broadcast_object_list(found)
    return found[0]


class StoreKeeper:
    """Writes values to the store while others are still being computed; a store that fails costs no result."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self.model = model
        self.waiting: Values = {}
        self.n_written = 0
        self.written_at = time.monotonic()

    def take(self, values: Values) -> None:
        """Takes values in; writes when it is time."""
        self.waiting |= values
        if time.monotonic() - self.written_at >= SECONDS_BETWEEN_WRITES:
            with _harmless():
                self._write()

    def finish(self) -> None:
        """Writes what still waits, notes that the model was used, and merges the files if they are many."""
        with _harmless():
            self._write()
            if PartialState().is_main_process:
                record_use(self.folder, self.model, _versions(), is_written=self.n_written > 0)
                merge_parts(self.folder)

    def _write(self) -> None:
        waiting, self.waiting, self.written_at = self.waiting, {}, time.monotonic()
        write_part(self.folder, waiting)
        self.n_written += len(waiting)


@contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except DpotoolError as error:
        logger.warning("reference values are not kept: %s", error)


def _versions() -> Mapping[str, str]:
    return {name: importlib.metadata.version(name) for name in ("dpotool", "torch", "transformers")}


def name_model(model: nn.Module, label: str | None) -> str:
    """Returns the label, or where the model was loaded from; a path so that it can be found from anywhere."""
    name = label or str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
