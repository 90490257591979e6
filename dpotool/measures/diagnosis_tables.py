"""Builds the two tables of a diagnosis from the results of every pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpotool.compare.scored_run import SIDES
from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood.subject import OpenSubject
from dpotool.measures.mass import VocabularyGains
from dpotool.runs.about import read_metadata
from dpotool.runs.folder import RunFolder
from dpotool.runs.schemas import THEORY_SCHEMA
from dpotool.runs.tables import read_table
from dpotool.settings.scoring import DiagnoseConfig

N_LISTED = 20
"""Vocabulary items that a summary names, of those that gained and of those that lost most."""


_UNREADABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class PairInside:
    """What was found in one pair."""

    place: int
    row: dict[str, float]
    """Columns of DIAGNOSIS_SCHEMA that are numbers."""
    tokens: dict[str, dict[str, np.ndarray]]
    """By side: columns of DIAGNOSIS_TOKEN_SCHEMA, those of the mass only at the positions in `places`."""
    spans: dict[str, list[str]]
    places: dict[str, np.ndarray]


def build_frame(opened: OpenSubject, found: Sequence[PairInside], config: DiagnoseConfig) -> pd.DataFrame:
    """Returns the columns of DIAGNOSIS_SCHEMA: a row per pair of the source, also for those that were left out."""
    pairs = opened.pair_set.pairs
    frame = pd.DataFrame(
        {
            "pair_id": [pair.pair_id for pair in pairs],
            "status": "ok",
            "prompt_id": [pair.prompt_id for pair in pairs],
            "chosen_tokens": [len(pair.chosen_ids) for pair in pairs],
            "rejected_tokens": [len(pair.rejected_ids) for pair in pairs],
        }
    )
    frame = pd.concat([frame, pd.DataFrame([inside.row for inside in found])], axis=1)
    frame["length_difference"] = (frame["chosen_tokens"] - frame["rejected_tokens"]).astype(float)
    frame["driver_score"] = frame["pair_id"].map(_read_drivers(opened, config))
    excluded = opened.pair_set.excluded
    left_out = pd.DataFrame({"pair_id": list(excluded), "status": list(excluded.values())}).astype({"pair_id": "int64"})
    return pd.concat([frame, left_out]).sort_values("pair_id", ignore_index=True)


def _read_drivers(opened: OpenSubject, config: DiagnoseConfig) -> Mapping[int, float]:
    """Returns the driver scores of a theory table of these pairs: the one named, else one beside model or reference.

    Raises:
        DpotoolError: the table that was named is of other pairs, or has no driver scores.
    """
    source, subject = opened.pair_set.source, opened.subject
    places = [Path(config.theory)] if config.theory else []
    if not places:
        folders = [subject.folder, *(RunFolder(Path(name)) for name in (subject.model, subject.reference) if name)]
        places = [path for folder in folders for path in folder.list_tables("theory")]
    for path in places:
        about = read_metadata(path)
        if (about.get("data"), about.get("split")) == (source.name, source.split):
            table = read_table(path, THEORY_SCHEMA)
            if table["driver_score"].notna().any():
                return dict(zip(table["pair_id"], table["driver_score"], strict=True))
    if config.theory:
        raise DpotoolError(
            "holds no driver scores of these pairs",
            where=config.theory,
            expected=f"a theory table of {source.name} [{source.split}] over all of them",
            remedy="Make one with `dpotool theory-gap` on the same --data and --split",
        )
    return {}


def build_tokens(opened: OpenSubject, found: Sequence[PairInside]) -> pd.DataFrame:
    """Returns the columns of DIAGNOSIS_TOKEN_SCHEMA: a row per token, pair after pair, chosen before rejected."""
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    decode = cache(partial(_decode, opened))
    names = {name for inside in found for side in SIDES for name in inside.tokens[side]} - {"logp", "ref_logp"}
    for inside in found:
        pair = opened.pair_set.pairs[inside.place]
        for side in SIDES:
            ids = np.array(_ids_of(pair, side))
            columns["pair_id"].append(np.full(len(ids), pair.pair_id))
            columns["side"].append(np.full(len(ids), side, dtype=object))
            columns["position"].append(np.arange(len(ids)))
            columns["token_id"].append(ids)
            columns["token"].append(np.array(spell_tokens(ids.tolist(), decode), dtype=object))
            columns["span"].append(np.array(inside.spans[side], dtype=object))
            for name in ("logp", "ref_logp"):
                columns[name].append(inside.tokens[side][name])
            for name in names:
                spread = np.full(len(ids), np.nan)
                spread[inside.places[side]] = inside.tokens[side].get(name, np.zeros(0))
                columns[name].append(spread)
    frame = pd.DataFrame({name: np.concatenate(values) for name, values in columns.items()})
    for name in names & {"top_id", "ref_top_id", "gain_id", "loss_id"}:
        frame[name] = frame[name].astype("Int64")
    return frame


def _ids_of(pair: TokenizedPair, side: str) -> tuple[int, ...]:
    return pair.chosen_ids if side == "chosen" else pair.rejected_ids


def spell_tokens(ids: Sequence[int], decode: Callable[..., str]) -> list[str]:
    """Returns each token's text in its place: a character that several tokens make up stands with the last of them.

    Tokenizers that work on bytes cut characters beyond ASCII into several tokens, which alone are no text.

    Args:
        decode: text of token ids.
    """
    texts = [decode(token_id) for token_id in ids]
    start = 0
    while start < len(texts):
        end = start
        while end < len(texts) and _UNREADABLE in texts[end]:
            end += 1
        before = ""
        for place in range(start, end):
            whole = decode(*ids[start : place + 1])
            is_open = whole.endswith(_UNREADABLE) and place + 1 < end
            texts[place] = "" if is_open else whole[len(before) :]
            before = before if is_open else whole
        start = end + 1
    return texts


def _decode(opened: OpenSubject, *token_ids: int) -> str:
    return str(opened.tokenizer.decode(list(token_ids)))


def list_gains(opened: OpenSubject, gains: VocabularyGains) -> dict[str, list[dict[str, Any]]]:
    """Names the vocabulary items that gained and lost most over all positions, as text with counts."""
    order = np.argsort(gains.change, kind="stable")

    def describe(items: np.ndarray) -> list[dict[str, Any]]:
        return [
            {
                "token_id": int(item),
                "token": _decode(opened, int(item)),
                "change": float(gains.change[item]),
                "n_gained_most": int(gains.n_first[item]),
            }
            for item in items
            if gains.change[item] != 0
        ]

    return {"gained": describe(order[::-1][:N_LISTED]), "lost": describe(order[:N_LISTED])}
