"""Compares a blend with the run that was trained with its lambda, and gives the command that saves a blend."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from dpotool.compare.controls import ACCURACY, CHOSEN, MARGIN, UNITS, read_columns
from dpotool.compare.differences import Comparison
from dpotool.compare.scored_run import ScoredRun
from dpotool.stats.intervals import Interval, format_interval
from dpotool.stats.paired import compare_means

OUT = "OUT"
"""Stands for a folder of the user's choice in a command that is printed."""


def say_deviations(comparison: Comparison, *, seed: int = 0) -> list[str]:
    """Returns a sentence for each blend whose lambda a run with the same seed was also trained with."""
    return [
        f"{blend.label} against {trained.label}, which was trained: "
        f"{_say(measure_deviation(blend, trained, seed=seed))}."
        for blend, trained in match_trained(comparison)
    ]


def measure_deviation(blend: ScoredRun, trained: ScoredRun, *, seed: int = 0) -> dict[str, Interval]:
    """Returns blend minus trained run over the same pairs, metric -> mean with its 95 % interval (`controls.UNITS`)."""
    shared = blend.scored.index.intersection(trained.scored.index)
    ours, theirs = (run.restrict(shared) for run in (blend, trained))
    left, right = read_columns(ours), read_columns(theirs)
    options: dict[str, Any] = {"clusters": theirs.clusters, "seed": seed}
    return {name: compare_means(left[name], right[name], **options).difference for name in (CHOSEN, MARGIN, ACCURACY)}


def match_trained(comparison: Comparison) -> Iterator[tuple[ScoredRun, ScoredRun]]:
    """Yields every blend by lambda with the run that was trained with its lambda and seed, where there is one."""
    trained: dict[tuple[float, Any], ScoredRun] = {}
    for run in comparison.scored:
        lambda_ = 1.0 if run.config.get("loss") == "dpo" else run.config.get("lambda_")
        if run.manifest.get("kind") == "train" and lambda_ is not None:
            trained.setdefault((round(float(lambda_), 9), run.manifest.get("seed")), run)
    for run in comparison.scored:
        known = (run.manifest.get("blend") or {}).get("lambda")
        found = None if known is None else trained.get((round(float(known), 9), run.manifest.get("seed")))
        if found is not None and run.is_referenced and found.is_referenced:
            yield run, found


def _say(deviation: Mapping[str, Interval]) -> str:
    parts = []
    for name, interval in deviation.items():
        scale, form, unit = UNITS[name]
        parts.append(f"{name} {format_interval(interval, form, scale, f' {unit}')}")
    return ", ".join(parts)


def say_how_to_save(run: ScoredRun) -> str | None:
    """Returns the command that saves a blend as a checkpoint; None for what is one already."""
    about = run.manifest.get("blend")
    if about is None or any(run.folder.path.glob("*.safetensors")):
        return None
    return write_command(about)


def write_command(about: Mapping[str, Any]) -> str:
    """Returns the command that saves the blend recorded in a run.yaml."""
    where = ["--weight", f"{about['weight']:g}"] if about["lambda"] is None else ["--at", f"{about['lambda']:g}"]
    return shlex.join(["dpotool", "blend", str(about["first"]), str(about["second"]), *where, "--write", OUT])
