"""The sections by which a reader can check a report and make it again: data, self-check, settings, commands."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dpotool.compare.findings import Findings
from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.summaries import check_margin_identity
from dpotool.errors import find_place
from dpotool.report.blocks import Block, Bullets, Code, Paragraph, Subheading, Table
from dpotool.runs.about import TheoryAbout, list_flags, read_about, repeat_import
from dpotool.runs.folder import RunFolder
from dpotool.settings.reading import ReportConfig
from dpotool.wording import count


def list_data_problems(findings: Findings) -> list[Block]:
    """Counts of what was left out or is odd among scored pairs, and what happened to the training pairs."""
    columns = ["run", "rows", "scored", "left out", "prompt shortened", "token across prompt and answer"]
    columns += ["chosen = rejected", "pair occurs twice", "margin exactly 0"]
    rows: list[list[str]] = []
    found: dict[str, list[str]] = {}
    for run in findings.comparison.scored:
        counts = (run.recorded or {}).get("counts") or {}
        names = ("n_rows", "n_truncated", "n_boundary_merged", "n_identical", "n_duplicate")
        n_rows, *odd = (_show(counts.get(name)) or "-" for name in names)
        ties = int((run.columns["reward_margins"] == 0).sum()) if run.is_referenced else "-"
        rows.append([run.label, n_rows, str(run.n), str(sum(run.excluded.values())), *odd, str(ties)])
        problems = [
            f"{count(n, 'scored row was', 'scored rows were')} left out: {reason}."
            for reason, n in run.excluded.items()
        ]
        problems += _list_odd(counts, "scored") + _list_training_problems(run.manifest)
        for problem in problems:
            found.setdefault(problem, []).append(run.label)
    blocks: list[Block] = [Table("The scored pairs: how many were left out or are odd in some way", columns, rows)]
    nothing = Paragraph(
        "In scoring and training, no pair was left out, shortened or merged, had two equal answers, or occurred twice."
    )
    return [*blocks, Bullets(_say_of_whom(found, len(rows))) if found else nothing]


_ODD = {
    "n_truncated": "had their prompt shortened",
    "n_boundary_merged": "had a token across prompt and answer",
    "n_identical": "had two equal answers",
    "n_duplicate": "occurred twice",
}


def _list_training_problems(manifest: Mapping[str, Any]) -> list[str]:
    part = (manifest.get("data") or {}).get("train") or {}
    left_out = part.get("n_excluded") or {}
    problems = [f"{count(n, 'training row was', 'training rows were')} left out: {why}." for why, n in left_out.items()]
    return problems + _list_odd(part, "training")


def _list_odd(counts: Mapping[str, Any], which: str) -> list[str]:
    """What was odd among the scored or the training pairs; that it is not known, where nothing counted them."""
    if not counts:
        return [
            f"It is not known how many {which} pairs were shortened or merged, had equal answers, or occurred twice."
        ]
    return [f"{count(counts[name], f'{which} pair')} {what}." for name, what in _ODD.items() if counts.get(name)]


def _say_of_whom(found: Mapping[str, Sequence[str]], n_runs: int) -> list[str]:
    """What is true of every run is said once."""
    return [
        f"{'Every run' if len(whose) == n_runs and n_runs > 1 else ', '.join(whose)}: {what}"
        for what, whose in found.items()
    ]


def check_itself(findings: Findings) -> list[Block]:
    """Returns a sentence for each run on the margin identity (reward margin = beta times the difference of changes)."""
    rows = []
    for run in findings.comparison.scored:
        check = check_margin_identity(run)
        if check is None:
            rows.append([run.label, "-", "-", "-", "no reference or no β"])
            continue
        numbers = [
            f"{check['from_means']:.6f}",
            f"{check['mean_margin']:.6f}",
            f"{check['difference']:.0e}" if check["difference"] else "0",
        ]
        rows.append([run.label, *numbers, "holds" if check["holds"] else "FAILS"])
    columns = ["run", "β × (change of chosen − change of rejected)", "mean margin", "difference", "identity"]
    note = (
        "The mean margin must equal β times the difference of the mean changes. This checks the report against its own "
        "tables. It fails where rewards were made with another β or another reference than the table says."
    )
    return [Table("The margin identity", columns, rows), Paragraph(note, tone="note")]


def describe_setup(manifests: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Settings in which runs differ and agree, and the machine and versions behind the first run."""
    configs = {label: manifest["config"] for label, manifest in manifests.items()}
    names = list(dict.fromkeys(name for config in configs.values() for name in config if name != "output"))
    same, different = [], []
    for name in names:
        values = [_show(config.get(name)) for config in configs.values()]
        if len(set(values)) > 1:
            different.append((name.rstrip("_"), values))
        elif values[0]:
            same.append([name.rstrip("_"), values[0]])
    blocks: list[Block] = []
    if different:
        rows = [[label, *(values[i] for _, values in different)] for i, label in enumerate(configs)]
        blocks.append(Table("What differs between the runs", ["run", *(n for n, _ in different)], rows, is_text=True))
    blocks.append(Table("What they have in common", ["setting", "value"], same, is_text=True))
    label, first = next(iter(manifests.items()))
    about = [[name, _show(first.get(name))] for name in ("created", "git_sha")]
    for part in ("hardware", "fingerprints", "versions"):
        about += [[f"{part}: {name}", _show(value)] for name, value in (first.get(part) or {}).items()]
    blocks.append(Table(f"Manifest of {label}", ["entry", "value"], [row for row in about if row[1]], is_text=True))
    return blocks


def _show(value: Any) -> str:
    if value is None or value == [] or value == "":
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    there = find_place(run)
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
