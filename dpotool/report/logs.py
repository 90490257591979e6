"""The page on runs that only left a training log: its figure, its first and last values, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd

from dpotool.compare.runs_table import expand_sweeps
from dpotool.errors import DpotoolError
from dpotool.plots.registry import get_plot
from dpotool.plots.scene import Scene, read_scene
from dpotool.plots.trajectory import describe_source, read_ends
from dpotool.report.blocks import Block, Bullets, Page, Paragraph, Section, Table
from dpotool.report.page import sign_page, write_page
from dpotool.report.record import describe_setup, repeat_page
from dpotool.report.sections import draw_figure
from dpotool.runs.folder import RunFolder
from dpotool.settings.reading import PlotConfig, ReportConfig

NO_VERDICT = (
    "There is no verdict, because nothing here is scored: a training log has means over batches and not a row per pair."
)
_MISSING = [
    "Verdict, differences, intervals, tests, and the most and least displaced pairs all need scores.",
    "The table below starts from the first value that was logged. The model before training may have had another.",
]
_OF_SCORES = ("baseline", "data", "split", "limit", "pairs", "seed")
_LOGGED = {
    "logps/chosen": "log π(chosen), nats",
    "logps/rejected": "log π(rejected), nats",
    "displacement/chosen": "change of chosen from the reference, nats",
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
}


def has_only_logs(paths: Sequence[str]) -> bool:
    """Whether the runs under these paths have training logs, and none of them has scores.

    Raises DpotoolError for a folder that is no run.
    """
    folders = expand_sweeps(paths, is_quiet=True)
    return any(run.metrics_path.exists() for run in folders) and not any(run.list_tables("score") for run in folders)


def write_log_report(paths: Sequence[str], config: ReportConfig) -> Path:
    """Writes the page on what the runs logged while training; returns where it is.

    Raises DpotoolError when a path is no run, the format or output cannot be used, or the config says what to do with
    scores.
    """
    _refuse_what_needs_scores(config)
    scene = read_scene(paths, PlotConfig())
    target, _ = write_page(lambda dpi: _build_page(scene, paths, config, dpi), paths, config)
    return target


def _refuse_what_needs_scores(config: ReportConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _OF_SCORES and value != field.default:
            raise DpotoolError(
                "is for scores, and nothing here is scored", where=f"--{field.name}", got=str(value),
                remedy="Leave it out, or run `dpotool score` first",
            )  # fmt: skip


def _build_page(scene: Scene, paths: Sequence[str], config: ReportConfig, dpi: int) -> Page:
    logs, metrics = scene.list_logs(), scene.read_metrics()
    manifests = {label: run.read_manifest() for label, run in logs.items()}
    return Page(
        title=f"Training log: {', '.join(logs)}",
        subtitle="means that training logged; log-likelihoods are sums over the tokens of an answer, in nats",
        sections=[
            Section("verdict", "What is missing, and what to do next", _say_what_is_missing(logs)),
            Section("logged", "First and last values", _tabulate_ends(metrics)),
            Section("trajectory", "While training", [draw_figure(get_plot("trajectory"), scene, dpi)]),
            Section("setup", "Settings and versions", describe_setup(manifests)),
            Section("reproduce", "How to reproduce", repeat_page(paths, config)),
        ],
        footer=sign_page(),
    )


def _say_what_is_missing(logs: Mapping[str, RunFolder]) -> list[Block]:
    score = [
        f"To score {label}, run `dpotool score {run.path}`."
        if run.read_manifest()["kind"] == "train"
        else f"To score a checkpoint of {label}, run `dpotool score CHECKPOINT --reference START --data PAIRS`."
        for label, run in logs.items()
    ]
    return [Paragraph(NO_VERDICT, tone="lead"), Bullets([*_MISSING, *score])]


def _tabulate_ends(metrics: Mapping[str, pd.DataFrame]) -> list[Block]:
    """A row per run; `-` where a value was not logged."""
    rows = []
    for label, table in metrics.items():
        ends = [read_ends(table, name) for name in _LOGGED]
        cells = [f"{end.first:.4g} to {end.last:.4g}" if end else "-" for end in ends]
        steps = f"{table['step'].min():g} to {table['step'].max():g}" if "step" in table else "-"  # nothing logged yet
        rows.append([label, describe_source(table), steps, *cells])
    caption = "The first and the last value that was logged"
    return [Table(caption, ["run", "means over", "steps", *_LOGGED.values()], rows)]
