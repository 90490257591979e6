"""The runs table: one row per scored run, from which pictures and the table of a sweep are made.

Columns: `label` (unique, for pictures), `path`, `model`, `loss`, `lambda_schedule`, `lambda` (the constant shift
factor; 1 for DPO, NaN for a schedule that moves and for losses without one), `lambda_min`, `lambda_max`, `beta`,
`seed`, `data`, `split`, `n`, `n_excluded`, and for each metric of METRICS its value under its own name with
`<metric>_low` and `<metric>_high`, the ends of its 95 % bootstrap interval. What is not known is NaN or None.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.summaries import MEANS, MEDIANS, PERPLEXITIES, SHARES, get_summary
from dpotool.errors import DpotoolError, find_place
from dpotool.runs.about import ScoreAbout, read_about
from dpotool.runs.folder import RunFolder, is_checkpoint_name, list_runs
from dpotool.stats.intervals import Interval

METRICS = (*MEANS, *(f"{name}_median" for name in MEDIANS), *SHARES, *PERPLEXITIES)
COLUMNS = (
    "label", "path", "model", "loss", "lambda_schedule", "lambda", "lambda_min", "lambda_max", "beta", "seed", "data",
    "split", "n", "n_excluded", *(f"{name}{end}" for name in METRICS for end in ("", "_low", "_high")),
)  # fmt: skip
_SCHEDULE_SIGNS = {"linear_increase": "↑", "linear_decrease": "↓"}


def expand_sweeps(paths: Sequence[str], *, is_quiet: bool = False) -> list[RunFolder]:
    """Returns the run folders that paths stand for: a sweep's own, then its runs, DPO first, then by falling lambda.

    A run that is named twice, by itself and by its sweep for example, is there once, with a warning that names it.

    Args:
        is_quiet: for who only looks at what is there, before somebody else reads it.

    Raises DpotoolError for a folder that is no run.
    """
    folders: list[RunFolder] = []
    for path in paths:
        folder = RunFolder(Path(path))
        folders += _cells(folder) if folder.read_manifest()["kind"] == "sweep" else [folder]
    once = {find_place(folder.path): folder for folder in reversed(folders)}  # the first of each is what stays
    if len(once) < len(folders) and not is_quiet:
        places = [find_place(folder.path) for folder in folders]
        twice = [str(once[place].path) for place in dict.fromkeys(places) if places.count(place) > 1]
        warnings.warn(f"named more than once, counted once: {', '.join(twice)}", stacklevel=2)
    return [folder for folder in folders if once[find_place(folder.path)] is folder]


def open_runs(
    folders: Sequence[RunFolder], *, data: str | None = None, split: str | None = None, limit: int | None = None
) -> list[ScoredRun]:
    """Opens a score table of each run, in their order, under labels that are unique among them.

    Where a run has several and none is asked for, a warning says what else it was scored on.

    Args:
        data, split, limit: which of each run's score tables, as `find_scores` takes them.

    Raises DpotoolError when a run has no such score table or it cannot be read.
    """
    runs, others = [], set()
    for folder in folders:
        path, more = find_scores(folder, data=data, split=split, limit=limit)
        runs.append(ScoredRun.open(path))
        others |= more
    if others and data is None and split is None and limit is None:
        shown = sorted({f"{run.data} [{run.split}]" for run in runs})
        warnings.warn(
            f"showing scores of {', '.join(shown)}; also scored on {', '.join(sorted(others))}. "
            "Choose with --data, --split and --limit",
            stacklevel=2,
        )
    labels = make_unique([_label_run(run) for run in runs], folders)
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def tabulate_runs(runs: Sequence[ScoredRun]) -> pd.DataFrame:
    """Returns the runs table, a row per run; without runs it has its columns all the same."""
    if not runs:
        return pd.DataFrame(columns=list(COLUMNS))
    rows = [_describe_row(run) for run in runs]
    # names of files are no text for pandas' own type of texts, which must be UTF-8
    kinds = {name: object if name in ("label", "path", "model") else None for name in rows[0]}
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()})


def find_series(models: Sequence[Any]) -> tuple[Path, int] | None:
    """Returns the run that all models are checkpoints of, and which of them is its last; None for any other models.

    Args:
        models: folders of models. The run's own folder, where it is named too, is what its training ended with.
    """
    places = [Path(str(model)) for model in models]
    are_checkpoints = [is_checkpoint_name(place.name) for place in places]
    runs = {place.parent if is_one else place for place, is_one in zip(places, are_checkpoints, strict=True)}
    if len(set(places)) < 2 or len(runs) > 1 or not any(are_checkpoints):
        return None
    steps = [
        int(place.name.partition("-")[2]) if is_one else math.inf
        for place, is_one in zip(places, are_checkpoints, strict=True)
    ]
    return runs.pop(), steps.index(max(steps))


def read_interval(row: Mapping[Any, Any], metric: str) -> Interval:
    """Returns a metric of a row of the runs table with its interval."""
    return Interval(*(float(row[f"{metric}{end}"]) for end in ("", "_low", "_high")))


def find_scores(
    run: RunFolder, *, data: str | None = None, split: str | None = None, limit: int | None = None
) -> tuple[Path, set[str]]:
    """Returns a run's score table, and what the others that were asked for no less are of.

    Of several it is one of the run's own evaluation pairs where there is one, and of those that are left the newest
    that was scored as the run itself is, before those of another limit, beta, ... (`variant` in the metadata).

    Args:
        data: name of the data, or the value of `--data` when it was scored. None accepts any.
        split, limit: likewise; a limit picks the table of so many rows.

    Raises DpotoolError when there is none.
    """
    asked = {"data": data, "split": split, "limit": limit}
    found = [
        (path, about) for path in run.list_tables("score") if _is_asked(about := read_about(path, ScoreAbout), asked)
    ]
    if not found:
        named = " ".join(str(part) for part in (data, split, f"limited to {limit}" if limit else None) if part)
        raise DpotoolError(
            f"no scores{f' of {named}' if named else ''} here",
            where=str(run.path),
            remedy=f"Run `dpotool score {run.path}` first",
        )
    own = _find_own_pairs(run)
    best, about = min(found, key=lambda each: ((each[1].data, each[1].split) != own, bool(each[1].variant)))
    shown = _say_pairs(about)
    return best, {_say_pairs(each) for _, each in found} - {shown}


def _is_asked(about: ScoreAbout, asked: Mapping[str, Any]) -> bool:
    settings = about.settings or {}
    names = {"data": (about.data, settings.get("data")), "split": (about.split,), "limit": (settings.get("limit"),)}
    return all(wanted is None or wanted in names[key] for key, wanted in asked.items())


def _find_own_pairs(run: RunFolder) -> tuple[str | None, str | None]:
    """Returns data and split that a run was evaluated on, or, by run.yaml, scored on first."""
    if not run.manifest_path.exists():
        return None, None
    recorded = run.read_manifest().get("data") or {}
    part = recorded.get("eval") or recorded.get("train") or recorded
    return part.get("name"), part.get("split")


def _say_pairs(about: ScoreAbout) -> str:
    return f"{about.data} [{about.split}]" + (f" ({about.variant})" if about.variant else "")


def describe_run(config: Mapping[str, Any]) -> str:
    """Returns a run's settings as a short label: DPO, DPO-Shift λ=0.9, DPO-Shift λ=0.75→1 ↑, IPO."""
    loss = str(config.get("loss") or "model")
    if loss == "blend":
        known = config.get("lambda_")
        return f"blend λ={known:g}" if known is not None else f"blend, weight {config.get('weight')}"
    if loss != "shift":
        return loss.upper()
    if config.get("lambda_schedule") == "adaptive":
        return f"DPO-Shift λ per pair ({config.get('adaptive_rule')})"
    sign = _SCHEDULE_SIGNS.get(str(config.get("lambda_schedule")))
    if sign is None:
        return f"DPO-Shift λ={config['lambda_']:g}" if config.get("lambda_") is not None else "DPO-Shift"
    ends = [config.get("lambda_min"), config.get("lambda_max")]
    if sign == "↓":
        ends.reverse()
    known = "→".join(f"{end:g}" for end in ends if end is not None)
    return f"DPO-Shift λ={known} {sign}" if known else f"DPO-Shift λ {sign}"


def _cells(sweep: RunFolder) -> list[RunFolder]:
    inside = [run for run in list_runs(sweep.path) if find_place(run.path) != find_place(sweep.path)]

    def order(run: RunFolder) -> tuple[bool, float, str]:
        settings = run.read_manifest()["config"]
        fixed = 1.0 if settings.get("loss") == "dpo" else settings.get("lambda_")
        return (fixed is None, -(fixed or 0.0), run.name)

    return [sweep, *sorted(inside, key=order)]


def _label_run(run: ScoredRun) -> str:
    label = (run.about.settings or {}).get("label")
    if label:
        return str(label)
    config = run.config
    is_trained = run.manifest.get("kind") == "train" or bool(config.get("loss"))
    return describe_run(config) if is_trained else run.folder.name


def _describe_row(run: ScoredRun) -> dict[str, Any]:
    config, summary = run.config, get_summary(run)
    row: dict[str, Any] = {
        "label": run.label,
        "path": str(run.folder.path),
        "model": config.get("model"),
        "loss": config.get("loss"),
        "lambda_schedule": _schedule_of(config),
        "lambda": _lambda_of(config),
        "lambda_min": _number(config.get("lambda_min")),
        "lambda_max": _number(config.get("lambda_max")),
        "beta": _number(run.beta),
        "seed": run.manifest.get("seed"),
        "data": run.data,
        "split": run.split,
        "n": summary["n"],
        "n_excluded": sum(summary["n_excluded"].values()),
    }
    for name in METRICS:
        interval = summary.get(name) or {}
        row[name] = _number(interval.get("mean", interval.get("value")))
        row[f"{name}_low"] = _number(interval.get("ci_low"))
        row[f"{name}_high"] = _number(interval.get("ci_high"))
    return row


def _schedule_of(config: Mapping[str, Any]) -> str | None:
    has_shift = config.get("loss") in ("dpo", "shift")
    return (config.get("lambda_schedule") or "constant") if has_shift else None


def _lambda_of(config: Mapping[str, Any]) -> float:
    if config.get("loss") == "dpo":
        return 1.0
    return _number(config.get("lambda_")) if _schedule_of(config) == "constant" else math.nan


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def make_unique(labels: Sequence[str], runs: Sequence[RunFolder]) -> list[str]:
    """Returns the labels, with what tells their folders apart behind those that occur more than once.

    That is the folder's name, with as many folders above it as it takes; should that be no help, a number.
    """
    unique = list(labels)
    for label in set(labels):
        rows = [row for row, each in enumerate(labels) if each == label]
        if len(rows) > 1:
            for row, name in zip(rows, _tell_apart([runs[row] for row in rows]), strict=True):
                unique[row] = f"{label} ({name})"
    for row, label in enumerate(unique):
        number = 1
        while unique[row] in unique[:row]:
            number += 1
            unique[row] = f"{label} #{number}"
    return unique


def _tell_apart(runs: Sequence[RunFolder]) -> list[str]:
    """Returns the ends of the folders' paths, all with as few folders above the run as keep them different."""
    places = [find_place(run.path) for run in runs]
    names = [run.name for run in runs]
    above = 0
    while len(set(names)) < len(set(places)):
        above += 1
        lengths = [above + 1 + run.name.count("/") for run in runs]
        names = ["/".join(place.parts[-length:]) for place, length in zip(places, lengths, strict=True)]
    return names
