"""A diagnosis beside scores, as `dpotool diagnose` leaves it, without a model."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dpotool.compare.diagnosis import SPANS, summarize_diagnosis
from dpotool.runs.folder import RunFolder
from dpotool.runs.schemas import DIAGNOSIS_SCHEMA, DIAGNOSIS_TOKEN_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table

WORDS = ("the", " river", " is", " wide", "\n", "<b>&", "</script>", " שלום", "\u202e", "")
PARTS = ("token", "other_side", "ref_top", "top", "rest")


def write_diagnosis(run: RunFolder, *, n: int = 40, seed: int = 0, data: str = "demo", split: str = "test") -> None:
    """Tables of n pairs whose answers have 4 to 9 tokens; every number is drawn, and the sums are right."""
    draw = np.random.default_rng(seed)
    tokens = pd.concat([_make_answer(draw, pair, side) for pair in range(n) for side in ("chosen", "rejected")])
    rows = [_make_row(draw, pair, tokens[tokens["pair_id"] == pair]) for pair in range(n)]
    frame = pd.DataFrame(rows)
    about = {"command": "diagnose", "label": "dpo", "model": "m", "data": data, "split": split}
    path, tokens_path = (run.table_path(kind, data, split) for kind in ("diagnosis", "diagnosis_token"))
    write_table(frame, path, DIAGNOSIS_SCHEMA, about)
    write_table(tokens, tokens_path, DIAGNOSIS_TOKEN_SCHEMA, about)
    items = [{"token_id": 5, "token": " wide", "change": 1.5, "n_gained_most": 3}]
    vocabulary = {"gained": items, "lost": [{**items[0], "token": "</script>", "change": -1.5}]}
    write_summary(path, about | summarize_diagnosis(frame, tokens) | {"vocabulary": vocabulary})


def _make_answer(draw: np.random.Generator, pair: int, side: str) -> pd.DataFrame:
    n = int(draw.integers(4, 10))
    ref_logp = -draw.gamma(1.0, 1.0, n)
    frame = pd.DataFrame(
        {
            "pair_id": pair, "side": side, "position": range(n), "token_id": draw.integers(0, len(WORDS), n),
            "ref_logp": ref_logp, "logp": np.minimum(ref_logp - draw.normal(0.5, 0.7, n), 0.0),
            "span": ["shared_prefix", *draw.choice(["shared", "divergent"], n - 2), "eos"],
        }
    )  # fmt: skip
    frame["token"] = [WORDS[i] for i in frame["token_id"]]
    if side == "chosen":
        for prefix in ("", "ref_"):
            shares = draw.dirichlet(np.ones(len(PARTS)), n)
            frame[[f"{prefix}p_{part}" for part in PARTS]] = shares
            frame[f"{prefix}p_eos"] = 0.25 * shares[:, -1]
            frame[f"{prefix}entropy"] = 1.0
        frame["total_variation"] = 0.3
    return frame


def _make_row(draw: np.random.Generator, pair: int, tokens: pd.DataFrame) -> dict[str, object]:
    row: dict[str, object] = {"pair_id": pair, "status": "ok", "prompt_id": str(pair)}
    for side in ("chosen", "rejected"):
        mine = tokens[tokens["side"] == side]
        changes = mine["logp"] - mine["ref_logp"]
        row |= {f"{side}_tokens": len(mine), f"{side}_displacement": changes.sum()}
        row |= {f"{side}_{span}": changes[mine["span"] == span].sum() for span in SPANS}
    names = ("ches", "ln_ches", "ches_all", "ln_ches_all", "edit_similarity", "reference_margin", "length_difference")
    row |= dict(zip(names, draw.normal(size=len(names)), strict=True))
    names = ("head_inner_product", "head_chosen_sq_norm", "head_rejected_sq_norm")
    return row | dict.fromkeys(names, 1.0) | {"driver_score": np.nan}
