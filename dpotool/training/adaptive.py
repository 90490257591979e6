"""Per-pair shift factors of a run: read from the theory table of its training pairs, one row per pair."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from dpotool.data.pairs import PairSet
from dpotool.errors import DpotoolError
from dpotool.likelihood.store import hash_pair
from dpotool.losses.adaptive import AdaptiveLambda
from dpotool.progress import Progress
from dpotool.runs.about import read_metadata
from dpotool.runs.schemas import THEORY_SCHEMA
from dpotool.runs.tables import read_table
from dpotool.training.config import TrainConfig
from dpotool.wording import count

Values = Float[np.ndarray, " pairs"]
WHOLE = "all trained parameters"
_NEEDED = ("u", "grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm")


def read_pair_shifts(rule: AdaptiveLambda, config: TrainConfig, pair_set: PairSet, progress: Progress) -> Values:
    """Computes f of every training pair, in their order.

    Raises:
        DpotoolError: the table is of other data, lacks pairs or holds values that are no numbers.
    """
    assert config.theory is not None
    frame = read_table(config.theory, THEORY_SCHEMA)
    about = read_metadata(config.theory)
    source = pair_set.source
    if about and (about.get("data"), about.get("split")) != (source.name, source.split):
        raise DpotoolError(
            "the theory table is of other pairs",
            where=config.theory,
            expected=f"{source.name} [{source.split}]",
            got=f"{about.get('data')} [{about.get('split')}]",
            remedy=f"Make one: dpotool theory-gap --model {config.model} --data {config.data} --split {source.split}",
        )
    if about.get("parameters", WHOLE) != WHOLE:
        progress.warn(f"{config.theory} counts only a part of what is trained: {about['parameters']}")
    if about and about.get("model") != config.model:
        progress.warn(f"{config.theory} was computed at {about.get('model')}, and training starts from {config.model}")
    rows = frame.drop_duplicates("pair_id").set_index("pair_id")
    ids = [pair.pair_id for pair in pair_set.pairs]
    missing = [pair_id for pair_id in ids if pair_id not in rows.index]
    if missing:
        raise DpotoolError(
            f"the theory table has no row for {len(missing)} of {count(len(ids), 'training pair')}",
            where=config.theory,
            got=f"none for row {missing[0]}, for one",
            remedy="Run theory-gap with the same --limit, --max-length and --truncation as this training",
        )
    _check_pairs(rows["pair_hash"].reindex(ids), pair_set, config.theory)
    values = rows.loc[ids, list(_NEEDED)].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise DpotoolError("the theory table holds values that are no numbers", where=config.theory)
    shifts = rule.compute_shifts(*values.T)
    progress.note(
        f"per-pair lambda ({rule.rule}): mean {shifts.mean():.3f}, from {shifts.min():.3f} to {shifts.max():.3f}, "
        f"1 for {int((shifts == 1).sum())} of {count(len(shifts), 'pair')}"
    )
    return shifts


def _check_pairs(hashes: pd.Series, pair_set: PairSet, path: str) -> None:
    """Compares tokens, not names: other data may have the same name, and other settings make other tokens."""
    others = [
        pair.pair_id
        for pair, known in zip(pair_set.pairs, hashes, strict=True)
        if pd.notna(known) and known != hash_pair(pair)
    ]
    if others:
        raise DpotoolError(
            f"the theory table is of other texts for {len(others)} of {count(len(hashes), 'training pair')}",
            where=path,
            got=f"row {others[0]}, for one, has other tokens",
            remedy="Run theory-gap on these pairs, with the same tokenizer, --max-length and --truncation",
        )
