"""The section that says how to make a report again: the page, the runs on it, the forecast, and the tables it read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dpotool.compare.scored_run import ScoredRun
from dpotool.report.blocks import Block, Bullets, Code, Paragraph, Subheading
from dpotool.report.config import ReportConfig
from dpotool.report.material import Material
from dpotool.report.rescore import NOT_RECORDED, rescore_foreign, rescore_trained
from dpotool.runs.commands import list_flags, repeat_import
from dpotool.runs.folder import RunFolder

_OF_COMPARE = ("baseline", "data", "split", "seed")
_SAME_NUMBERS = "On the same machine and versions the numbers repeat; see the manifest above."


def say_how_to_repeat(material: Material) -> list[Block]:
    """The commands that make the page and the runs again, and the tables that were read."""
    scored, theory = material.findings.comparison.scored, material.findings.theory_table
    compare = ["dpotool", "compare", *material.paths, *_list_flags(material.config, _OF_COMPARE)]
    blocks = repeat_page(material.paths, material.config, shlex.join(compare))
    runs = [line for run in scored for line in _repeat_run(run, material.manifests[run.label])]
    if runs:
        blocks += [
            Paragraph(f"The runs again. {_SAME_NUMBERS} {NOT_RECORDED}"),
            Code("\n".join(runs)),
        ]
    if theory:
        blocks += _repeat_theory(theory)
    sources = [f"{run.label}: {run.path}" for run in scored]
    if theory:
        sources.append(f"theory: {theory}")
    return [*blocks, Subheading("Tables read"), Bullets(sources)]


def repeat_page(paths: Sequence[str], config: ReportConfig, *more: str) -> list[Block]:
    """The command that makes a page again with all that it was told, and `more` commands behind it."""
    report = ["dpotool", "report", *paths, *_list_flags(config, [field.name for field in fields(config)])]
    return [
        Paragraph("The page again, from the tables, without any model:"),
        Code("\n".join([shlex.join(report), *more])),
    ]


def choose_place(run: Path) -> str:
    """Returns a folder to make a run again in, as `run` is named: beside the outermost run that it lies in.

    Inside a sweep it would count as one of the sweep's own at the next report.
    """
    there = run.resolve()
    outermost = [folder for folder in (there, *there.parents) if RunFolder(folder).manifest_path.is_file()][-1:]
    above = (outermost[0] if outermost else there).parent
    place = above / f"{'-'.join(there.relative_to(above).parts)}-again"
    return str(place) if run.is_absolute() else os.path.relpath(place)


def _list_flags(config: ReportConfig, names: Collection[str]) -> list[str]:
    """What a command was told that differs from its defaults, as flags."""
    asked = [field for field in fields(config) if field.name in names]
    return list_flags({each.name: value for each in asked if (value := getattr(config, each.name)) != each.default})


def _repeat_run(run: ScoredRun, manifest: Mapping[str, Any]) -> list[str]:
    """The commands that train and score a run, or score or import it, again."""
    place = choose_place(run.folder.path)
    about, config, recorded = run.about, manifest["config"], run.folder.manifest_path
    if manifest["kind"] == "import":
        return [repeat_import(config, about, place)]
    if manifest["kind"] == "train":
        train = ["train", "--config", str(recorded), "--output", place]
        commands = [train, rescore_trained(about, config, place)]
    elif manifest["kind"] == "score":
        commands = [rescore_foreign(about, config, recorded, place)]
    else:
        commands = []
    return [shlex.join(["dpotool", *command]) for command in commands]


def _repeat_theory(table: Path) -> list[Block]:
    """The command behind the forecast, where its folder records it: in another run's folder only the table is kept."""
    folder = RunFolder(table.parent.parent)
    manifest = folder.read_manifest() if folder.manifest_path.is_file() else {"kind": None}
    if manifest["kind"] != "theory":
        return [
            Paragraph(
                f"The forecast lies in the folder of another run, {folder.path}, whose run.yaml does not have the "
                "settings of `dpotool theory-gap`.",
                tone="note",
            )
        ]
    words = ["--config", str(folder.manifest_path), "--output", choose_place(folder.path)]
    return [Paragraph("The forecast again:"), Code(shlex.join(["dpotool", "theory-gap", *words]))]
