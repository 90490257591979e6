"""Keeps the pairs that a measure calls safe: the measures, the sources of their values, and the two output files.

A filter decides by a number of each pair: from a table of `diagnose` or `theory-gap` of the same pairs, from a
tokenizer alone (lengths, edit similarity), or at random, as a control. Kept and dropped rows are written as they stand
in the source, in their order, with a manifest that names every row and its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpotool import __version__
from dpotool.compare.diagnosis import RISKS, add_head_risk
from dpotool.data.pair_sets import load_rows
from dpotool.data.pairs import PreferenceData
from dpotool.data.rewriting import open_rewriter
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.progress import SILENT, Progress
from dpotool.runs.about import TableAbout, read_about
from dpotool.runs.atomic import write_bytes, write_json
from dpotool.runs.folder import RunFolder, shorten_name
from dpotool.runs.tables import read_table
from dpotool.settings.reading import FilterConfig
from dpotool.settings.shared import DEMO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SIDES = ("highest", "lowest", "furthest")
RANDOM = "random"
FROM_TOKENS = ("edit_similarity", "length_difference", "chosen_tokens")
DEFAULT_SPLIT = "train"
_RISKY = {"driver_score": "lowest", "reference_margin": "lowest", "length_difference": "furthest"}
MEASURES: dict[str, tuple[str, str]] = {
    **{name: (called, _RISKY.get(name, "highest")) for name, (called, _) in RISKS.items()},
    "chosen_displacement": ("change of log pi(chosen) in training", "lowest"),
    RANDOM: ("a number drawn at random, as a control", "highest"),
}
"""Name of a measure -> what it is, and which of its values are risky."""


@dataclass(frozen=True, slots=True)
class Values:
    """A measure of each pair."""

    by_row: Mapping[int, float]
    origin: str
    """Where they come from, for the manifest."""


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What a filter wrote."""

    manifest: dict[str, Any]
    kept: Path
    dropped: Path
    path: Path
    """The manifest."""


def filter_pairs(config: FilterConfig, *, progress: Progress = SILENT) -> FilterResult:
    """Writes the pairs to keep and the pairs to drop into two files, with a manifest.

    Raises:
        DpotoolError: neither or both of --keep and --drop-top, no such measure, no values of these pairs, or nothing to
            drop or to keep.
    """
    side = _check(config)
    data = load_rows(config, seed=config.seed, default_split=DEFAULT_SPLIT)
    values = find_values(config, data, progress)
    dropped = choose_dropped(values.by_row, side, keep=config.keep, drop_top=config.drop_top)
    kept = [pair.pair_id for pair in data.pairs if pair.pair_id not in dropped]
    if not kept:
        raise DpotoolError("no pair would be kept", where="--drop-top", expected=f"below {len(data.pairs)}")
    return _write(config, data, values, side, kept, sorted(dropped))


def _check(config: FilterConfig) -> str:
    """Returns which values are risky."""
    if config.by not in MEASURES:
        raise DpotoolError(
            f"no measure {config.by!r}", where="--by", remedy=suggest_nearest(config.by, MEASURES), expected=None
        )
    if (config.keep is None) == (config.drop_top is None):
        raise DpotoolError("says not how many pairs to keep", where="filter", expected="either --keep or --drop-top")
    if config.drop not in (None, *SIDES):
        raise DpotoolError("unknown side", where="--drop", expected=", ".join(SIDES), got=repr(config.drop))
    return config.drop or MEASURES[config.by][1]


def choose_dropped(
    values: Mapping[int, float], side: str, *, keep: float | None = None, drop_top: int | None = None
) -> set[int]:
    """Returns the rows with the riskiest values; of equal values the earlier rows are dropped first.

    Args:
        values: row -> value, none of them NaN.
        keep: share of the rows to keep, rounded to a whole number of rows.
    """
    rows, numbers = np.array(list(values), dtype=np.int64), np.array(list(values.values()), dtype=np.float64)
    risk = {"highest": numbers, "lowest": -numbers, "furthest": np.abs(numbers)}[side]
    n_dropped = min(len(rows), drop_top) if drop_top is not None else len(rows) - round((keep or 0) * len(rows))
    return set(rows[np.argsort(-risk, kind="stable")[:n_dropped]].tolist())


def find_values(config: FilterConfig, data: PreferenceData, progress: Progress = SILENT) -> Values:
    """Returns the measure for each pair that has it.

    Raises:
        DpotoolError: there is no table of these pairs with it.
    """
    rows = [pair.pair_id for pair in data.pairs]
    if config.table is not None:
        return _read_values(Path(config.table), config, data)
    if config.by == RANDOM:
        drawn = np.random.default_rng(config.seed).permutation(len(rows))
        return Values(dict(zip(rows, drawn.astype(float).tolist(), strict=True)), f"seed {config.seed}")
    if config.by in FROM_TOKENS:
        return _measure_tokens(config, data, progress)
    for path in _list_tables(config):
        if read_about(path, TableAbout).fingerprints.data == data.source.fingerprint:
            try:
                return _read_values(path, config, data)
            except DpotoolError:
                continue
    command = "theory-gap" if config.by == "driver_score" else "diagnose"
    raise DpotoolError(
        f"no table has {config.by} of these pairs",
        where="--by",
        remedy=f"Run `dpotool {command} MODEL --data {data.source.data} --split {data.source.split}` first, and name "
        "the table with --table or its run folder with --model",
    )


def _list_tables(config: FilterConfig) -> list[Path]:
    if config.model is None:
        return []
    folder = RunFolder(Path(config.model))
    return [*folder.list_tables("diagnosis"), *folder.list_tables("theory")]


def _read_values(path: Path, config: FilterConfig, data: PreferenceData) -> Values:
    about, table = read_about(path, TableAbout), read_table(path)
    if about.fingerprints.data not in (None, data.source.fingerprint):
        raise DpotoolError(
            f"is of other pairs than {data.source.data} [{data.source.split}]",
            where=str(path),
            got=f"{about.data} [{about.split}]",
            remedy="Name the same data, --split and --limit, or make the table again",
        )
    if "head_inner_product" in table:
        table = add_head_risk(table)
    if config.by not in table or not table[config.by].notna().any():
        raise DpotoolError(f"has no {config.by}", where=str(path), got=", ".join(map(str, table.columns)))
    numbers = pd.Series(table[config.by].astype(float).to_numpy(), index=table["pair_id"].astype(int))
    known = {pair.pair_id for pair in data.pairs}
    values = {int(row): float(value) for row, value in numbers.items() if row in known and np.isfinite(value)}
    return Values(values, str(path))


def _measure_tokens(config: FilterConfig, data: PreferenceData, progress: Progress) -> Values:
    """The measures that need a tokenizer and no model."""
    from dpotool.data.pair_sets import tokenize_preferences
    from dpotool.measures.spans import compute_edit_similarity
    from dpotool.models.loading import load_tokenizer
    from dpotool.training.demo import build_demo_tokenizer

    tokenizer: PreTrainedTokenizerBase = (
        build_demo_tokenizer()
        if config.model is None
        else load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, progress=progress)
    )
    pair_set = tokenize_preferences(data, tokenizer, max_length=config.max_length, truncation=config.truncation)
    measure = {
        "edit_similarity": lambda pair: compute_edit_similarity(pair.chosen_ids, pair.rejected_ids),
        "length_difference": lambda pair: float(len(pair.chosen_ids) - len(pair.rejected_ids)),
        "chosen_tokens": lambda pair: float(len(pair.chosen_ids)),
    }[config.by]
    return Values({pair.pair_id: measure(pair) for pair in pair_set.pairs}, f"the tokenizer of {config.model or DEMO}")


def _write(
    config: FilterConfig, data: PreferenceData, values: Values, side: str, kept: list[int], dropped: list[int]
) -> FilterResult:
    source = data.source
    name = shorten_name(source.name if source.name.endswith(source.split) else f"{source.name}-{source.split}")
    folder = Path(config.output or Path("filtered") / f"{name}-{config.by}")
    rewriter = open_rewriter(config, DEFAULT_SPLIT, data, config.seed)
    files = {part: folder / f"{name}-{part}{rewriter.suffix}" for part in ("kept", "dropped")}
    without = [pair.pair_id for pair in data.pairs if pair.pair_id not in values.by_row]
    manifest: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "dpotool": __version__,
        "source": asdict(source),
        "by": config.by,
        "measure": MEASURES[config.by][0],
        "values_from": values.origin,
        "risky": side,
        "keep": config.keep,
        "drop_top": config.drop_top,
        "seed": config.seed,
        "n_rows": data.n_rows,
        "n_kept": len(kept),
        "n_dropped": len(dropped),
        "n_kept_without_value": len(without),
        "n_malformed": len(data.invalid),
        "malformed": data.invalid,
        "kept": _describe(files["kept"], kept, values),
        "dropped": _describe(files["dropped"], dropped, values),
    }
    for part, rows in (("kept", kept), ("dropped", dropped)):
        if rows:
            write_bytes(files[part], rewriter.encode(rows))
    path = write_json(folder / "filter.json", manifest)
    return FilterResult(manifest, files["kept"], files["dropped"], path)


def _describe(path: Path, rows: list[int], values: Values) -> dict[str, Any]:
    """The file, its rows by their numbers in the source, and their values; null where there is none."""
    numbers = [values.by_row.get(row) for row in rows]
    known = [number for number in numbers if number is not None]
    mean = float(np.mean(known)) if known else None
    return {"file": path.name, "mean": mean, "rows": rows, "values": numbers}
