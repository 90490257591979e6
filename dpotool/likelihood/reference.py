"""Reference log-probabilities, computed once per pair and kept under a key of content.

The key of a pair is a hash of what its values depend on: the reference model's weights, the numeric types, and the
pair's token ids with the boundary. So a second run, a sweep, a subset and a superset all find what was computed before,
and a changed weight, template or tokenizer finds nothing. One folder holds one (model, types); every write adds a file
of its own and renames it into place, so concurrent runs can share a store.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood.layout import AUTO
from dpotool.likelihood.pair_logps import DEFAULT_BATCH_TOKENS, PairLogpArrays, Progress, compute_pair_logps
from dpotool.models.fingerprint import fingerprint_model
from dpotool.results.atomic import atomic_path

logger = logging.getLogger(__name__)


def cache_root() -> Path:
    """Returns where dpotool keeps what it can compute again: $DPOTOOL_CACHE, else ~/.cache/dpotool."""
    return Path(os.environ.get("DPOTOOL_CACHE", "~/.cache/dpotool")).expanduser()


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

    @property
    def layouts(self) -> dict[str, int]:
        return {"shared": self.n_shared, "paired": self.n_paired, "stored": self.n_cached}


def load_or_compute_reference(
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    autocast: torch.dtype | None = None,
    layout: str = AUTO,
    store: Path | None = None,
    on_progress: Progress | None = None,
) -> ReferenceLogps:
    """Returns log pi_ref of every pair's chosen and rejected completion, from the store where it has them.

    Units as in `compute_pair_logps`. Missing pairs are computed and added to the store.
    """
    fingerprint = fingerprint_model(model)
    types = f"{next(model.parameters()).dtype}-{autocast}".replace("torch.", "")
    folder = (store or cache_root() / "reference") / f"{fingerprint}-{types}"
    keys = [_key_of(pair) for pair in pairs]
    known = _read_store(folder)
    missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in known}
    if on_progress is not None:
        on_progress(sum(key in known for key in keys))
    n_shared = 0
    if missing:
        computed = compute_pair_logps(
            model,
            list(missing.values()),
            batch_tokens=batch_tokens,
            autocast=autocast,
            layout=layout,
            on_progress=on_progress,
        )
        n_shared = computed.n_shared
        known |= dict(zip(missing, zip(computed.chosen, computed.rejected, strict=True), strict=True))
        if PartialState().is_main_process:
            _add_to_store(folder, list(missing), computed)
    values = np.array([known[key] for key in keys], dtype=np.float64).reshape(-1, 2)
    n_cached = sum(key not in missing for key in keys)
    return ReferenceLogps(
        values[:, 0].copy(), values[:, 1].copy(), n_cached, fingerprint, n_shared, len(missing) - n_shared
    )


def _key_of(pair: TokenizedPair) -> str:
    text = "|".join(",".join(map(str, ids)) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_store(folder: Path) -> dict[str, tuple[float, float]]:
    known: dict[str, tuple[float, float]] = {}
    for path in sorted(folder.glob("*.parquet")):
        try:
            frame = pd.read_parquet(path)
            values = zip(frame["chosen_logps"], frame["rejected_logps"], strict=True)
        except (OSError, ValueError, KeyError):
            continue  # an unreadable file only costs its pairs a second computation
        known |= dict(zip(frame["key"], values, strict=True))
    return known


def _add_to_store(folder: Path, keys: list[str], logps: PairLogpArrays) -> None:
    frame = pd.DataFrame({"key": keys, "chosen_logps": logps.chosen, "rejected_logps": logps.rejected})
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
    try:
        with atomic_path(folder / f"{name}.parquet") as path:
            frame.to_parquet(path, index=False)
    except DpotoolError as error:  # a store that cannot be written costs time, not results
        logger.warning("reference values are not kept: %s", error)
