"""Assembles the score table: a row per pair of the source, also for those that were left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from dpotool.data.pairs import PairSet, TokenizedPair
from dpotool.likelihood.pair_logps import ScoredPairs


def build_score_frame(pair_set: PairSet, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Returns a score table (SCORE_SCHEMA): which pair a row is, and the columns of the measures beside it.

    Args:
        columns: values of the pairs that are not excluded, in their order.
    """
    pairs = pair_set.pairs
    frame = pd.DataFrame(
        {
            "pair_id": [pair.pair_id for pair in pairs],
            "status": "ok",
            "prompt_id": [pair.prompt_id for pair in pairs],
            "prompt_tokens": [len(pair.prompt_ids) for pair in pairs],
            "chosen_tokens": [len(pair.chosen_ids) for pair in pairs],
            "rejected_tokens": [len(pair.rejected_ids) for pair in pairs],
            **columns,
            "score_chosen": pd.array([pair.score_chosen for pair in pairs], dtype="Float64"),
            "score_rejected": pd.array([pair.score_rejected for pair in pairs], dtype="Float64"),
        }
    )
    excluded = pd.DataFrame({"pair_id": list(pair_set.excluded), "status": list(pair_set.excluded.values())})
    return pd.concat([frame, excluded.astype({"pair_id": "int64"})]).sort_values("pair_id", ignore_index=True)


def build_token_frame(
    pairs: Sequence[TokenizedPair],
    policy: ScoredPairs,
    reference: ScoredPairs | None,
    token_texts: Mapping[int, str],
) -> pd.DataFrame:
    """Returns the columns of TOKEN_SCHEMA: a row per completion token, in the order of the score table.

    Args:
        policy, reference: values computed with `with_tokens`.
        token_texts: the text of every token id that occurs.
    """
    rows: list[dict[str, object]] = []
    for index, pair in enumerate(pairs):
        for side, name in enumerate(("chosen", "rejected")):
            ids = (pair.chosen_ids, pair.rejected_ids)[side]
            logps = policy.tokens[index][side]
            ref_logps = [math.nan] * len(ids) if reference is None else reference.tokens[index][side]
            rows += [
                {
                    "pair_id": pair.pair_id,
                    "side": name,
                    "position": position,
                    "token_id": token_id,
                    "token": token_texts[token_id],
                    "logp": float(logps[position]),
                    "ref_logp": float(ref_logps[position]),
                }
                for position, token_id in enumerate(ids)
            ]
    return pd.DataFrame(rows)
