"""The summary beside a table: sealed by a hash of what it says, and checked by a schema for its kind of table.

Numbers that are not finite are null in the file, as JSON has none. In an interval they are read back as NaN, so that
whoever made a summary and whoever reads one calculate with the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pyarrow as pa

from dpotool.errors import DpotoolError
from dpotool.runs.atomic import to_json_plain, write_json
from dpotool.runs.checked import check_value, read_json
from dpotool.runs.manifest import Count
from dpotool.runs.parquet import hash_values
from dpotool.runs.schemas import SCORE_SCHEMA

_SEAL = "seal"
_TABLE = "table_hash"
"""Key of a summary: the values of its table, `hash_values`; summaries of earlier releases do not have it."""
_REMEDY = "Write it again with the command that made it"
_ENDS = ("mean", "value", "ci_low", "ci_high")
_Number = Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+)?(e-?\d+)?$")]
"""A lambda, as a key."""


class _Interval(msgspec.Struct):
    ci_low: float
    ci_high: float


class _Mean(_Interval):
    mean: float


class _Value(_Interval):
    """A share, a median, a correlation or a slope."""

    value: float


class _Summary(msgspec.Struct, kw_only=True):
    """What other commands read of the summary of any kind of table."""

    n: Count
    n_excluded: dict[str, Count] | Count | None = None
    label: str | None = None
    caveat: str | None = None


class _Size(msgspec.Struct):
    largest: Annotated[float, msgspec.Meta(ge=0)]


class _Noise(msgspec.Struct):
    logps: _Size | None = None
    ref_logps: _Size | None = None
    reward_margins: _Size | None = None


_MEASURED = [name for name in SCORE_SCHEMA.names if name.endswith(("logps", "rewards", "margins", "displacement"))]
_SHARES = ["reward_accuracy", "reward_accuracy_beyond_noise", "chosen_displaced_share", "rejected_displaced_share"]
_ANSWERS = ["chosen", "rejected", "ref_chosen", "ref_rejected"]
_VALUES = [*(f"{name}_median" for name in _MEASURED), *_SHARES, *(f"{name}_perplexity" for name in _ANSWERS)]
_SCORE_FIELDS: list[tuple[str, Any, Any]] = [
    ("n_excluded", dict[str, Count], msgspec.NODEFAULT),
    ("noise_floor", _Noise | None, None),
    *((name, _Mean | None, None) for name in _MEASURED),
    *((name, _Value | None, None) for name in _VALUES),
]
_ScoreSummary = msgspec.defstruct("_ScoreSummary", _SCORE_FIELDS, bases=(_Summary,), kw_only=True)


class _Gains(msgspec.Struct):
    chosen_change: _Mean
    rejected_change: _Mean
    margin_change: _Mean
    accuracy: _Value


class _Advice(msgspec.Struct, kw_only=True):
    grid: dict[_Number, _Gains] = {}
    recommended_lambda: float | None = None
    lowest_affordable_lambda: float | None = None
    reason: str | None = None


class _Rung(msgspec.Struct):
    rate: Annotated[float, msgspec.Meta(gt=0)]
    measured: float
    residual: Annotated[float, msgspec.Meta(ge=0)]


class _Ladder(msgspec.Struct):
    predicted: float
    slope: float | None
    ladder: Annotated[list[_Rung], msgspec.Meta(min_length=1)]


class _Verification(msgspec.Struct):
    n: Count
    dtype: str
    optimizers: dict[str, dict[_Number, dict[str, _Ladder]]]


class _Average(msgspec.Struct):
    mean: float


class _Share(msgspec.Struct):
    value: float


class _TheorySummary(_Summary, kw_only=True):
    n_excluded: dict[str, Count] = {}
    u: _Average | None = None
    v: _Average | None = None
    gaps: dict[_Number, dict[str, dict[str, _Mean]]] = {}
    sign_disagreements: dict[_Number, dict[str, dict[str, _Share]]] = {}
    advice: dict[str, _Advice] = {}
    advice_from: str | None = None
    verification: _Verification | None = None


class _Span(_Mean):
    share_of_tokens: float


class _Spans(msgspec.Struct):
    shared_prefix: _Span
    shared: _Span
    divergent: _Span
    eos: _Span


class _Position(msgspec.Struct):
    first: Count
    last: Count
    part: float


class _Worst(msgspec.Struct):
    share: float
    n_for_half: float


class _Side(msgspec.Struct):
    displacement: _Mean
    spans: _Spans
    positions: list[_Position]
    worst: _Worst | None


class _Shares(msgspec.Struct):
    other_side: float
    ref_top: float
    eos: float
    elsewhere: float


class _Mass(msgspec.Struct):
    shares: _Shares | None


class _Risk(msgspec.Struct):
    called: str
    rank_correlation: _Value | None
    given: _Value | None


class _Token(msgspec.Struct):
    token: str


class _Vocabulary(msgspec.Struct):
    gained: list[_Token] = []


class _DiagnosisSummary(_Summary, kw_only=True):
    chosen: _Side | None
    rejected: _Side | None
    mass: _Mass | None
    risks: dict[str, _Risk] | None
    vocabulary: _Vocabulary | None = None


class _Fit(msgspec.Struct):
    same_sign: _Value
    correlation: _Value | None
    slope: _Value | None


class _PredictionSummary(_Summary, kw_only=True):
    chosen: _Fit
    rejected: _Fit
    distance: float = 0.0
    at: Literal["from", "middle", "to"] = "from"


class _Rates(msgspec.Struct):
    ties_half: _Value


class _Power(msgspec.Struct):
    questions_needed: float | None


class _JudgmentSummary(_Summary, kw_only=True):
    label: str
    baseline: str
    judge: str
    questions: str | None = None
    wins: Count
    ties: Count
    losses: Count
    without_outcome: Count
    n_compared: Count | None = None
    verdicts: dict[str, Count] = {}
    win_rate: _Rates
    p_value: float | None
    p_adjusted: float | None = None
    power: _Power


_SCHEMAS: dict[str, Any] = {
    "score": _ScoreSummary, "theory": _TheorySummary, "diagnosis": _DiagnosisSummary,
    "prediction": _PredictionSummary, "judgment": _JudgmentSummary,
}  # fmt: skip


def summary_path(table: Path) -> Path:
    """Returns the path of the summary of a table: scores/demo-test.parquet -> scores/demo-test.summary.json."""
    return table.with_suffix(".summary.json")


def write_summary(table: Path, summary: Mapping[str, Any]) -> None:
    """Writes the summary beside a table, sealed by a hash of what it says."""
    plain = json.loads(json.dumps(to_json_plain(summary), allow_nan=False))
    if (known := _hash_table(table)) is not None:
        plain[_TABLE] = known
    write_json(summary_path(table), {**plain, _SEAL: _hash(plain)})


def read_summary(table: Path, kind: str) -> dict[str, Any] | None:
    """Returns the summary of a table; None if there is none.

    Args:
        kind: of table, a key of `schemas.TABLES`.

    Raises DpotoolError when it cannot be read, is not what was once written, or is of other values than the table's.
    """
    if not summary_path(table).exists():
        return None
    return {name: value for name, value in _read(table, kind).items() if name != _TABLE}


def _read(table: Path, kind: str) -> dict[str, Any]:
    path = summary_path(table)
    summary = read_json(path, dict[str, Any], what="a summary", remedy=_REMEDY)
    if summary.pop(_SEAL, None) != _hash(summary):
        raise DpotoolError("is not what a command wrote, or was changed since", where=str(path), remedy=_REMEDY)
    if _TABLE in summary and _hash_table(table) not in (None, summary[_TABLE]):
        raise DpotoolError(f"is of other values than {table.name} beside it holds", where=str(path), remedy=_REMEDY)
    summary = {name: _restore(value) for name, value in summary.items()}
    check_value(summary, _SCHEMAS.get(kind, _Summary), where=str(path), remedy=_REMEDY)
    return summary


def need_summary(table: Path, kind: str) -> dict[str, Any]:
    """Returns what `read_summary` does; raises DpotoolError where there is none."""
    summary = read_summary(table, kind)
    if summary is None:
        raise DpotoolError("is missing", where=str(summary_path(table)), remedy=_REMEDY)
    return summary


def read_score_summary(table: Path) -> dict[str, Any] | None:
    """Returns the summary beside a score table; None where it is missing, of another table or unreadable.

    Those of earlier releases do not say which table they are of; of them a summary that is older than its table is not.

    A caller that needs one can compute it from the table.
    """
    path = summary_path(table)
    if not path.is_file():
        return None
    try:
        summary = _read(table, "score")
    except DpotoolError:
        return None
    is_bound = summary.pop(_TABLE, None) is not None
    return summary if is_bound or path.stat().st_mtime_ns >= table.stat().st_mtime_ns else None


def _hash_table(table: Path) -> str | None:
    """Hashes the values that a summary is of; None where they cannot be read, which their reader will say."""
    try:
        return hash_values(table)
    except (OSError, pa.ArrowException):
        return None


def _restore(value: Any) -> Any:
    """Returns a value whose intervals have NaN where the file has null, however deep they lie."""
    if isinstance(value, list):
        return [_restore(each) for each in value]
    if not isinstance(value, dict):
        return value
    is_interval = "ci_low" in value and "ci_high" in value
    return {
        key: math.nan if is_interval and each is None and key in _ENDS else _restore(each)
        for key, each in value.items()
    }


def _hash(summary: Mapping[str, Any]) -> str:
    """Hashes what was found; `layouts` says how: what is computed anew for one command another has from the store."""
    summary = {name: value for name, value in summary.items() if name != "layouts"}
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()[:16]
