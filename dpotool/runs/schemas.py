"""The kinds of table, one registry: columns with types, units and definitions, and where in a run folder they lie.

All log-probabilities are in nats and float64. Definitions travel inside the files as Arrow field metadata.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

TABLE_KEY = b"dpotool_table"  # schema metadata: the kind, a key of TABLES
METADATA_KEY = b"dpotool_metadata"  # schema metadata: the caller's dict, as JSON


def column(
    name: str, type_: pa.DataType, unit: str, definition: str, *, required: bool = False, optional: bool = False
) -> pa.Field:
    """Returns a column. `required`: no nulls. `optional`: a table without it is read as if it were null."""
    about = {"unit": unit, "definition": definition} | ({"optional": "true"} if optional else {})
    return pa.field(name, type_, nullable=not required, metadata=about)


def _dot_column(answer: str, mean: str) -> pa.Field:
    gradient = {"chosen": "W", "rejected": "L"}
    definition = f"<{gradient[answer]}, mean {gradient[mean]}>, the mean over all pairs of the table"
    return column(f"{answer}_dot_mean_{mean}", pa.float64(), "nats^2", definition, optional=True)


def _displacement_column(side: str) -> pa.Field:
    definition = f"{side}_logps - ref_{side}_logps: how far training moved the {side} completion"
    return column(f"{side}_displacement", pa.float64(), "nats", definition, optional=True)


def check_rows(frame: pd.DataFrame, schema: pa.Schema) -> None:
    """Raises ValueError for what no command writes, or where a pair, or a token, has two rows in a table with one each.

    That is a number beyond the range of its column, or a word other than the column's. Infinity is for others to judge.
    """
    for field in schema:
        values = frame[field.name].dropna()
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            (low, high), numbers = find_range(field), values.to_numpy(dtype="float64")
            odd = numbers[((numbers < low) | (numbers > high)) & (abs(numbers) < math.inf)]
            if len(odd):
                limits = f"below {low:.3g} or above {high:.3g}"
                raise ValueError(f"column {field.name!r} holds {odd[0]:g}, and nothing there is {limits}")
        if field.name in WORDS and not values.isin(WORDS[field.name]).all():
            odd = values[~values.isin(WORDS[field.name])].iloc[0]
            raise ValueError(f"column {field.name!r} holds {odd!r}, not one of {', '.join(WORDS[field.name])}")
    key = [name for name in ("pair_id", "side", "position") if name in schema.names]
    if schema.names[0] == "pair_id" and frame.duplicated(key).any():
        what = "pair" if len(key) == 1 else "token"
        twice = frame[frame.duplicated(key)].iloc[0]
        raise ValueError(f"{what} {' '.join(str(twice[name]) for name in key)} has more than one row")


def is_optional(field: pa.Field) -> bool:
    """Tells whether a table may lack the column."""
    return b"optional" in (field.metadata or {})


def _schema(name: str, definition: str, columns: list[pa.Field]) -> pa.Schema:
    return pa.schema(columns, metadata={TABLE_KEY: name.encode(), b"definition": definition.encode()})


WORDS = {
    "side": ("chosen", "rejected"),
    "span": ("shared_prefix", "shared", "divergent", "eos"),
    "order": ("first", "second", "apart"),
    "verdict": ("win", "tie", "loss"),
}
"""Column of text -> the words that may stand in it, in whichever table it is."""

_ROUNDING = 0.01
_LARGEST = {True: 10**12, False: 1e30}  # whether of whole numbers; no count, product or likelihood comes near
_RANGES = {"logps": (-1e30, _ROUNDING), "logp": (-1e30, _ROUNDING), "sq_norm": (0.0, 1e30), "cosine": (-1.01, 1.01)}


def find_range(field: pa.Field) -> tuple[float, float]:
    """Returns what the finite numbers of a column lie between; the scores that the data brings are any."""
    if field.name in ("score_chosen", "score_rejected"):
        return -math.inf, math.inf
    if field.metadata[b"unit"] == b"probability":
        return -1.00001, 1.00001
    whole = pa.types.is_integer(field.type)
    ends = next((ends for ending, ends in _RANGES.items() if field.name.endswith(ending)), None)
    return ends or (0 if whole else -_LARGEST[whole], _LARGEST[whole])


_PAIR_ID = column("pair_id", pa.int64(), "row", "row number in the source split, from 0", required=True)
_PROMPT_ID = column(
    "prompt_id", pa.string(), "", "hash of the prompt; pairs of one prompt have the same", optional=True
)

SCORE_SCHEMA = _schema(
    "score",
    "One row per pair. A pair that was left out has the reason in status and nulls behind it. "
    "The reference columns and the rewards are null where there is no reference.",
    [
        _PAIR_ID,
        column("status", pa.string(), "", "'ok', or why the pair was left out", required=True),
        _PROMPT_ID,
        column("prompt_tokens", pa.int64(), "tokens", "tokens of the prompt after truncation"),
        column("chosen_tokens", pa.int64(), "tokens", "tokens of the chosen completion that count, EOS included"),
        column("rejected_tokens", pa.int64(), "tokens", "tokens of the rejected completion that count, EOS included"),
        column("chosen_logps", pa.float64(), "nats", "log pi(chosen | prompt), summed over completion tokens"),
        column("rejected_logps", pa.float64(), "nats", "log pi(rejected | prompt), summed over completion tokens"),
        column("ref_chosen_logps", pa.float64(), "nats", "chosen_logps under the reference"),
        column("ref_rejected_logps", pa.float64(), "nats", "rejected_logps under the reference"),
        column("chosen_rewards", pa.float64(), "nats", "beta * (chosen_logps - ref_chosen_logps)"),
        column("rejected_rewards", pa.float64(), "nats", "beta * (rejected_logps - ref_rejected_logps)"),
        column("reward_margins", pa.float64(), "nats", "chosen_rewards - rejected_rewards, never shifted by lambda"),
        _displacement_column("chosen"),
        _displacement_column("rejected"),
        column("score_chosen", pa.float64(), "", "score of the chosen completion in the data"),
        column("score_rejected", pa.float64(), "", "score of the rejected completion in the data"),
    ],
)

TOKEN_SCHEMA = _schema(
    "token",
    "One row per completion token of every scored pair.",
    [
        _PAIR_ID,
        column("side", pa.string(), "", "'chosen' or 'rejected'", required=True),
        column("position", pa.int64(), "tokens", "place in the completion, from 0", required=True),
        column("token_id", pa.int64(), "", "token id in the model's vocabulary", required=True),
        column("token", pa.string(), "", "the token as text"),
        column("logp", pa.float64(), "nats", "log-probability of this token given all before it"),
        column("ref_logp", pa.float64(), "nats", "logp under the reference"),
    ],
)

THEORY_SCHEMA = _schema(
    "theory",
    "One row per pair. W and L are the gradients of log pi(chosen | prompt) and log pi(rejected | prompt) over all "
    "trained parameters.",
    [
        _PAIR_ID,
        column("grad_inner_product", pa.float64(), "nats^2", "<W, L>"),
        column("chosen_grad_sq_norm", pa.float64(), "nats^2", "|W|^2"),
        column("rejected_grad_sq_norm", pa.float64(), "nats^2", "|L|^2"),
        column("grad_cosine", pa.float64(), "", "<W, L> / (|W| |L|)"),
        column("chosen_logratios", pa.float64(), "nats", "log pi/pi_ref of the chosen completion (a)"),
        column("rejected_logratios", pa.float64(), "nats", "log pi/pi_ref of the rejected completion (b)"),
        column("u", pa.float64(), "nats^2", "gamma s(f gamma b - gamma a) <W, L>; Theorem 2.1 of arXiv:2502.07599"),
        column("v", pa.float64(), "nats^2", "<W, L> - |L|^2 with eta1 = 1; Theorem 2.1 of arXiv:2502.07599"),
        column("band_low", pa.float64(), "", "least f at which the rejected does not rise: max(0, <W, L> / |L|^2)"),
        column("band_high", pa.float64(), "", "greatest f at which the chosen does not fall: |W|^2 / <W, L>, or inf"),
        column("entanglement", pa.string(), "", "which likelihoods one DPO step on this pair alone moves, and where"),
        *(_dot_column(answer, mean) for mean in ("chosen", "rejected") for answer in ("chosen", "rejected")),
        _PROMPT_ID,
        column("pair_hash", pa.string(), "", "hash of the pair's token ids, by which a table is known", optional=True),
        column(
            "driver_score",
            pa.float64(),
            "",
            "what the pair's part in a DPO step does to the mean chosen log-likelihood of the other pairs, nats per "
            "nat of mean margin that the step gains; below 0: it drives displacement",
            optional=True,
        ),
    ],
)

PREDICTION_SCHEMA = _schema(
    "prediction",
    "One row per pair: how its log-likelihoods differ between two checkpoints, and what a first order predicts of it.",
    [
        _PAIR_ID,
        _PROMPT_ID,
        column("chosen_logps", pa.float64(), "nats", "log pi(chosen | prompt) at the first checkpoint"),
        column("rejected_logps", pa.float64(), "nats", "log pi(rejected | prompt) at the first checkpoint"),
        column("chosen_change", pa.float64(), "nats", "log pi(chosen) at the second checkpoint minus at the first"),
        column("rejected_change", pa.float64(), "nats", "log pi(rejected) at the second minus at the first"),
        column("predicted_chosen_change", pa.float64(), "nats", "<grad log pi(chosen), difference of weights>"),
        column("predicted_rejected_change", pa.float64(), "nats", "<grad log pi(rejected), difference of weights>"),
    ],
)

JUDGMENT_SCHEMA = _schema(
    "judgment",
    "One row per verdict: a question's two answers in one order, or judged apart and then compared. A row without a "
    "verdict says in status why, and counts in no class.",
    [
        column("question_id", pa.string(), "", "the question's id in its file, or the row of its pair", required=True),
        column("sample", pa.int64(), "", "which of the model's answers to the question, from 0", required=True),
        column("order", pa.string(), "", "'first' or 'second': place of the model's answer; 'apart'", required=True),
        column("status", pa.string(), "", "'judged', 'identical' (not asked), or why there is none", required=True),
        column("verdict", pa.string(), "", "'win', 'tie' or 'loss' of the model against the baseline"),
        column("is_doubtful", pa.int64(), "", "1: the reply opens with a verdict and goes against it", optional=True),
        column("model_score", pa.float64(), "", "the judge's score of the model's answer, where it scores"),
        column("baseline_score", pa.float64(), "", "likewise of the baseline's"),
        column("model_length", pa.int64(), "characters", "length of the model's answer"),
        column("baseline_length", pa.int64(), "characters", "length of the baseline's answer"),
        column("category", pa.string(), "", "the question's category, where it has one", optional=True),
        _PROMPT_ID,
    ],
)

RATING_SCHEMA = _schema(
    "rating",
    "One row per answer and turn that a judge graded by itself (MT-Bench's single grading).",
    [
        column("question_id", pa.string(), "", "the question's id in its file", required=True),
        column("turn", pa.int64(), "", "turn of the conversation, from 1", required=True),
        column("status", pa.string(), "", "'judged', or why there is no rating", required=True),
        column("rating", pa.float64(), "points", "the judge's rating, 1 to 10"),
        column("category", pa.string(), "", "the question's category, where it has one", optional=True),
    ],
)


def _span_columns(side: str) -> list[pa.Field]:
    where = {
        "shared_prefix": "before the first token in which the two answers differ",
        "shared": "after it, matched with a token of the other answer",
        "divergent": "matched with no token of the other answer",
        "eos": "that close the answer",
    }
    return [
        column(f"{side}_{span}", pa.float64(), "nats", f"part of {side}_displacement on tokens {text}")
        for span, text in where.items()
    ]


_CHES = "<sum h+, sum h-> - |sum h+|^2 of the last hidden states of the two answers"

DIAGNOSIS_SCHEMA = _schema(
    "diagnosis",
    "One row per pair: on which tokens its answers moved, and how risky it looked under the reference alone (under the "
    "model itself where there is no reference). A pair that was left out has the reason in status.",
    [
        _PAIR_ID,
        column("status", pa.string(), "", "'ok', or why the pair was left out", required=True),
        _PROMPT_ID,
        column("chosen_tokens", pa.int64(), "tokens", "tokens of the chosen completion, EOS included"),
        column("rejected_tokens", pa.int64(), "tokens", "tokens of the rejected completion, EOS included"),
        _displacement_column("chosen"),
        _displacement_column("rejected"),
        *_span_columns("chosen"),
        *_span_columns("rejected"),
        column("ches", pa.float64(), "", f"{_CHES}, without each answer's last state; arXiv:2410.08847, Definition 2"),
        column("ln_ches", pa.float64(), "", "ches with each sum divided by its number of states"),
        column("ches_all", pa.float64(), "", f"{_CHES}, with each answer's last state, as in the authors' results"),
        column("ln_ches_all", pa.float64(), "", "ches_all with each sum divided by its number of states"),
        column("edit_similarity", pa.float64(), "", "1 - Levenshtein distance of the token ids / longer answer"),
        column("length_difference", pa.float64(), "tokens", "chosen_tokens - rejected_tokens"),
        column("reference_margin", pa.float64(), "nats", "log pi_ref(chosen) - log pi_ref(rejected)"),
        column("head_inner_product", pa.float64(), "nats^2", "<W, L> in the output layer's weights alone"),
        column("head_chosen_sq_norm", pa.float64(), "nats^2", "|W|^2 in the output layer's weights alone"),
        column("head_rejected_sq_norm", pa.float64(), "nats^2", "|L|^2 in the output layer's weights alone"),
        column("driver_score", pa.float64(), "", "from the theory table of these pairs; null without one"),
    ],
)

_MASS_PARTS = {
    "token": "of this token",
    "other_side": "of the other answer's next token, where the two have just diverged",
    "ref_top": "of the reference's most likely token",
    "top": "of the policy's most likely token",
    "rest": "of everything else",
}


def _mass_columns(prefix: str, under: str) -> list[pa.Field]:
    parts = [
        column(
            f"{prefix}p_{part}", pa.float64(), "probability", f"{text}, under the {under}; 0 where a part before has it"
        )
        for part, text in _MASS_PARTS.items()
    ]
    return [*parts, column(f"{prefix}p_eos", pa.float64(), "probability", f"of the end token, under the {under}")]


DIAGNOSIS_TOKEN_SCHEMA = _schema(
    "diagnosis_token",
    "One row per completion token of every pair. What begins with p_ is null at positions that were not looked into.",
    [
        _PAIR_ID,
        column("side", pa.string(), "", "'chosen' or 'rejected'", required=True),
        column("position", pa.int64(), "tokens", "place in the completion, from 0", required=True),
        column("token_id", pa.int64(), "", "token id in the model's vocabulary", required=True),
        column("token", pa.string(), "", "its text; a character of several tokens stands with the last of them"),
        column("logp", pa.float64(), "nats", "log-probability of this token given all before it"),
        column("ref_logp", pa.float64(), "nats", "logp under the reference"),
        column("span", pa.string(), "", "shared_prefix, shared, divergent or eos", required=True),
        *_mass_columns("", "policy"),
        *_mass_columns("ref_", "reference"),
        column("top_id", pa.int64(), "", "the policy's most likely token"),
        column("ref_top_id", pa.int64(), "", "the reference's most likely token"),
        column("gain_id", pa.int64(), "", "the token that gained most, policy minus reference"),
        column("gain", pa.float64(), "probability", "how much it gained"),
        column("loss_id", pa.int64(), "", "the token that lost most"),
        column("loss", pa.float64(), "probability", "its change, below 0"),
        column("entropy", pa.float64(), "nats", "of the policy's distribution"),
        column("ref_entropy", pa.float64(), "nats", "of the reference's distribution"),
        column("total_variation", pa.float64(), "", "half the sum of absolute differences of the two distributions"),
    ],
)


@dataclass(frozen=True, slots=True)
class TableKind:
    """One kind of table: its columns, and its place in a run folder."""

    folder: str
    schema: pa.Schema | None = None
    """None where another tool or the user decides on the columns."""
    formats: tuple[str, ...] = ("parquet", "csv", "jsonl")
    suffix: str = ""
    """Part of the name before the ending, if a folder has several kinds: demo-test.tokens.parquet."""


TABLES = {
    "score": TableKind("scores", SCORE_SCHEMA),
    "token": TableKind("scores", TOKEN_SCHEMA, suffix="tokens"),
    "theory": TableKind("theory", THEORY_SCHEMA),
    "diagnosis": TableKind("diagnosis", DIAGNOSIS_SCHEMA),
    "diagnosis_token": TableKind("diagnosis", DIAGNOSIS_TOKEN_SCHEMA, suffix="tokens"),
    "prediction": TableKind("predictions", PREDICTION_SCHEMA),
    "imported": TableKind("imported", formats=("csv",)),
    "answer": TableKind("answers", formats=("jsonl",)),
    "judgment": TableKind("judgments", JUDGMENT_SCHEMA, formats=("parquet",)),
    "rating": TableKind("ratings", RATING_SCHEMA, formats=("parquet",)),
}
"""Name of a kind, as a table's own metadata has it -> the kind. `RunFolder.table_path` and `list_tables` read it."""
SCHEMAS = {name: kind.schema for name, kind in TABLES.items() if kind.schema is not None}
