"""The store of log-probabilities and gradient products: what was computed once for a pair is found by content.

The key of a pair is a hash of what its values depend on: the model's weights and settings, the numeric types, and the
pair's token ids with the boundary, which hold all that tokenizer and chat template do. So a second run, a sweep, a
subset and a superset all find what was computed before, and a changed weight or template finds nothing.
What only moves values within rounding is not in the key: how pairs were batched and laid out, the attention
implementation, the device and its matrix library, the versions of torch and transformers (recorded beside the values).
Files and their handling: `dpotool.cache`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from dpotool import __version__
from dpotool.cache.entries import record_use
from dpotool.cache.parts import Values, merge_parts, read_parts, write_part
from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError, expand_home, find_place
from dpotool.runs.manifest import collect_versions

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_WRITES = 60.0
"""Results are written at least this often, and when the program ends or is interrupted, but not when it is killed."""


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
        """Takes values in, but none that is not finite; writes when it is time."""
        self.waiting |= {key: sums for key, sums in values.items() if all(map(math.isfinite, sums))}
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
    except (DpotoolError, OSError) as error:
        logger.warning("values are not kept in the store: %s", error)


def _versions() -> Mapping[str, str]:
    installed = collect_versions()  # but dpotool may be run from a checkout
    return {"dpotool": __version__, **{name: installed[name] for name in ("torch", "transformers")}}


def name_model(model: nn.Module, label: str | None) -> str:
    """Returns the label, or where the model was loaded from; a path so that it can be found from anywhere."""
    name = label or str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)
    path = expand_home(name)
    return str(find_place(path)) if path.exists() else name
