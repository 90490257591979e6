"""The section that says how to make a report again: the page, the runs on it, the forecast, and the tables it read."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dpotool.compare.findings import Findings
from dpotool.compare.scored_run import ScoredRun
from dpotool.report.blocks import Block, Bullets, Code, Paragraph, Subheading
from dpotool.report.config import ReportConfig
from dpotool.runs.commands import list_flags, repeat_import
from dpotool.runs.folder import RunFolder
from dpotool.settings import DEFAULT_BETA, SubjectSettings

_OF_COMPARE = ("baseline", "data", "split", "seed")
_SAME_NUMBERS = (
    "On the same machine and with the same versions, which stand above, they give the same numbers. Score tables do "
    "not record --dtype and --truncation: a scoring that was given one needs it again."
)
_CUT = ("data", "test_fraction", "split_seed")
_ROWS = ("data", "limit", "split", "test_fraction", "split_seed", "seed", "skip_invalid")
_SAME = ("max_length", "beta", "reference")


def say_how_to_repeat(findings: Findings, paths: Sequence[str], config: ReportConfig) -> list[Block]:
    """The commands that make the page and the runs again, and the tables that were read."""
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
    """The command that makes a page again with all that it was told, and `more` commands behind it."""
    report = ["dpotool", "report", *paths, *_list_flags(config, [field.name for field in fields(config)])]
    return [
        Paragraph("These commands make the page again from the tables, without any model."),
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


def _repeat_run(run: ScoredRun) -> list[str]:
    """The commands that train and score a run, or score or import it, again."""
    manifest = run.manifest
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
    return [Paragraph("This command makes the forecast again."), Code(shlex.join(["dpotool", "theory-gap", *words]))]


def rescore_trained(about: Mapping[str, Any], config: Mapping[str, Any], run: str) -> list[str]:
    """Returns the words of the command that scores a trained run as a table was.

    Args:
        about: the table's metadata.
        config: of the run's manifest.
        run: where it is trained again.
    """
    evaluated = "eval_" if config.get("eval_data") else ""
    own = {**config, **{name: config.get(f"{evaluated}{name}") for name in ("data", "split", "limit")}}
    if own.get("split_seed") is None:
        own["split_seed"] = config.get("seed")
    asked = _read_asked(about)
    is_own = all(asked.get(name, own.get(name)) == own.get(name) for name in _CUT)  # else --data was named
    untold = {name: own.get(name) for name in _ROWS} if is_own else _untold()
    untold |= {name: config.get(name) for name in _SAME}
    untold |= {"beta": config.get("beta") or DEFAULT_BETA, "reference": config.get("reference") or config.get("model")}
    return ["score", run, *_list_unlike(asked, untold)]


def rescore_foreign(about: Mapping[str, Any], config: Mapping[str, Any], manifest: Path, output: str) -> list[str]:
    """Returns the words of the command that scores a model from elsewhere as a table was.

    The manifest is that of the folder's first scoring. Where it has what the table was made without, and no flag takes
    back, the command does without it.

    Args:
        about, config: as for `rescore_trained`.
        manifest: path of the folder's run.yaml.
        output: folder to write to.
    """
    asked, model = _read_asked(about), str(config["model"])
    if any(config.get(name) and not value for name, value in asked.items()):
        return ["score", model, *_list_unlike(asked, _untold()), "--output", output]
    untold = {**config, "beta": config.get("beta") or DEFAULT_BETA}
    return ["score", model, "--config", str(manifest), *_list_unlike(asked, untold), "--output", output]


def _read_asked(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a table records of its scoring; older ones lack some."""
    named = {name: value for name, value in about.items() if name != "data"}  # a table's name is not what --data takes
    found = {**named, **(about.get("rows") or {})}
    return {name: found[name] for name in (*_ROWS, *_SAME) if name in found}


def _untold() -> dict[str, Any]:
    return {**SubjectSettings().to_dict(), "beta": DEFAULT_BETA}


def _list_unlike(asked: Mapping[str, Any], untold: Mapping[str, Any]) -> list[str]:
    unlike = {name: value for name, value in asked.items() if value != untold.get(name)}
    if "data" not in unlike and untold.get("split") is None and asked.get("split") in ("test", "all"):
        unlike.pop("split", None)  # what is read without --split
    return list_flags(unlike)
