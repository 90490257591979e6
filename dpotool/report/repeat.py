"""The section that says how to make a report again: the page, the runs on it, the forecast, and the tables it read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

from dpotool.compare.findings import Findings
from dpotool.compare.scored_run import ScoredRun
from dpotool.report.blocks import Block, Bullets, Code, Paragraph, Subheading
from dpotool.runs.about import TheoryAbout, list_flags, read_about, repeat_import
from dpotool.runs.folder import RunFolder
from dpotool.settings.reading import ReportConfig

_OF_COMPARE = ("baseline", "data", "split", "limit", "seed")
_SAME_NUMBERS = "On the same machine and with the same versions, which stand above, they give the same numbers."


def say_how_to_repeat(findings: Findings, paths: Sequence[str], config: ReportConfig) -> list[Block]:
    """Returns the commands that make the page and the runs again, and the tables that were read."""
    scored, theory = findings.comparison.scored, findings.theory_table
    compare = ["dpotool", "compare", *paths, *_list_flags(config, _OF_COMPARE)]
    blocks = repeat_page(paths, config, shlex.join(compare))
    runs = [line for run in scored for line in _repeat_run(run)]
    if runs:
        blocks += [Paragraph(f"These commands make the runs again. {_SAME_NUMBERS}"), Code("\n".join(runs))]
    if theory:
        blocks += _repeat_theory(theory)
    sources = [f"{run.label}: {run.path}" for run in scored]
    if theory:
        sources.append(f"theory: {theory}")
    return [*blocks, Subheading("Tables read"), Bullets(sources)]


def repeat_page(paths: Sequence[str], config: ReportConfig, *more: str) -> list[Block]:
    """Returns the command that makes a page again with the same settings, followed by `more` commands."""
    report = ["dpotool", "report", *paths, *_list_flags(config, [field.name for field in fields(config)])]
    return [
        Paragraph("These commands make the page again from the tables, without any model."),
        Code("\n".join([shlex.join(report), *more])),
    ]


def choose_place(run: Path) -> str:
    """Returns a folder to make a run again in, as `run` is named: beside the outermost run that it lies in.

    Inside the sweep's folder, the next report would take it for one of the sweep's runs.
    """
    there = run.resolve()
    outermost = [folder for folder in (there, *there.parents) if RunFolder(folder).manifest_path.is_file()][-1:]
    above = (outermost[0] if outermost else there).parent
    place = above / f"{'-'.join(there.relative_to(above).parts)}-again"
    return str(place) if run.is_absolute() else os.path.relpath(place)


def _list_flags(config: ReportConfig, names: Collection[str]) -> list[str]:
    """The settings of a command that differ from its defaults, as flags."""
    asked = [field for field in fields(config) if field.name in names]
    return list_flags({each.name: value for each in asked if (value := getattr(config, each.name)) != each.default})


def _repeat_run(run: ScoredRun) -> list[str]:
    """The commands that train and score a run, or score or import it, again."""
    place, kind = choose_place(run.folder.path), run.manifest["kind"]
    if kind == "import":
        return [repeat_import(run.config, run.about, place)]
    flags = [] if run.about.settings is None else ["--config", str(run.path)]
    if kind == "train":
        train = ["train", "--config", str(run.folder.manifest_path), "--output", place]
        commands = [train, ["score", place, *flags]]
    elif kind == "score":
        flags = flags or ["--config", str(run.folder.manifest_path)]
        commands = [["score", str(run.about.model or run.config["model"]), *flags, "--output", place]]
    elif kind == "blend":
        ends = run.manifest["blend"]
        flags = ["--weight", str(ends["weight"]), "--output", place]
        commands = [["blend", str(ends["first"]), str(ends["second"]), *flags]]
    else:
        commands = []
    return [shlex.join(["dpotool", *command]) for command in commands]


def _repeat_theory(table: Path) -> list[Block]:
    """The command behind the forecast, from the settings that its table records, or its folder's run.yaml.

    A table without settings that lies in the folder of another run (both are of an older dpotool) cannot be repeated.
    """
    folder = RunFolder.of_table(table)
    source = table
    if read_about(table, TheoryAbout).settings is None:
        source = folder.manifest_path
        if not source.is_file() or folder.read_manifest()["kind"] != "theory":
            reason = f"The forecast's table in {folder.path} does not record the settings of `dpotool theory-gap`."
            return [Paragraph(reason, tone="note")]
    words = ["--config", str(source), "--output", choose_place(folder.path)]
    return [Paragraph("This command makes the forecast again."), Code(shlex.join(["dpotool", "theory-gap", *words]))]
