"""The sections of a report, in their order: what was found first, how it was found after it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpotool.plots.scene import Scene
from dpotool.report import pictures
from dpotool.report.blocks import Block, Bullets, Code, Paragraph, Section, Subheading, Table
from dpotool.report.pair_choice import show_pairs
from dpotool.report.texts import TextSource
from dpotool.results.compared_table import EFFECTS_TITLE, tabulate_comparison, tabulate_effects, tabulate_seeds
from dpotool.results.findings import Findings
from dpotool.results.runs import summary_path
from dpotool.results.summaries import check_margin_identity, split_scored
from dpotool.results.tables import read_table


@dataclass(frozen=True, slots=True)
class Material:
    """All that a report is made from."""

    findings: Findings
    scene: Scene
    texts: TextSource
    paths: list[str]
    """What the user named."""
    n_pairs: int
    manifests: dict[str, dict[str, Any]]
    """label -> run.yaml"""


_CRITERIA = ("displaced", "rejected_falls_more", "ranking_kept", "mass_near_chosen")
_VERDICT_COLUMNS = ["model", "verdict", "displaced", "rejected falls more", "ranking kept", "mass near chosen"]


def build_sections(material: Material) -> list[Section]:
    """Returns every section of SECTIONS, in order; one that has nothing to show says why."""
    return [Section(id_, title, build(material)) for id_, (title, build) in SECTIONS.items()]


def _verdict(material: Material) -> list[Block]:
    findings = material.findings
    blocks: list[Block] = [
        Paragraph(f"{findings.comparison.baseline}: {findings.statement}", tone="lead"),
    ]
    if findings.recommendation is not None:
        blocks.append(Paragraph(f"Recommendation. {findings.recommendation['statement']}"))
    blocks.append(Paragraph(f"Next. {findings.next_action}"))
    rows = []
    for label, verdict in findings.verdicts.items():
        states = [verdict["criteria"][name] for name in _CRITERIA] if verdict else ["-"] * len(_CRITERIA)
        rows.append([label, verdict["kind"] if verdict else "no reference", *map(_say_state, states)])
    caption = "Verdict on each model: yes or no where the whole 95 % interval says so, else open"
    return [*blocks, Table(caption, _VERDICT_COLUMNS, rows, is_text=True)]


def _say_state(state: str) -> str:
    return {"met": "yes", "failed": "no"}.get(state, state)


def _models(material: Material) -> list[Block]:
    findings = material.findings
    columns, rows = tabulate_comparison(findings.comparison, findings.verdicts)
    caption = (
        f"Differences from {findings.comparison.baseline} over the same pairs; nats unless it says otherwise; 95 % "
        "bootstrap intervals; p adjusted by Holm"
    )
    blocks: list[Block] = [Table(caption, columns, rows)]
    if findings.comparison.differences:
        title = EFFECTS_TITLE.format(baseline=findings.comparison.baseline)
        blocks.append(Table(title, *tabulate_effects(findings.comparison)))
    if findings.seeds:
        caption = (
            "Settings trained with several seeds, against the baseline of the same seed; intervals over training too"
        )
        blocks.append(Table(caption, *tabulate_seeds(findings.seeds)))
    if findings.sentences:
        blocks.append(Bullets(findings.sentences))
    blocks += [Paragraph(problem, tone="warning") for problem in findings.comparison.problems]
    return blocks


def _setup(material: Material) -> list[Block]:
    configs = {label: manifest["config"] for label, manifest in material.manifests.items()}
    names = list(dict.fromkeys(name for config in configs.values() for name in config if name != "output"))
    same, different = [], []
    for name in names:
        values = [_show(config.get(name)) for config in configs.values()]
        if len(set(values)) > 1:
            different.append((name, values))
        elif values[0]:
            same.append([name, values[0]])
    blocks: list[Block] = []
    if different:
        rows = [[label, *(values[i] for _, values in different)] for i, label in enumerate(configs)]
        blocks.append(Table("What differs between the runs", ["run", *(n for n, _ in different)], rows, is_text=True))
    blocks.append(Table("What they have in common", ["setting", "value"], same, is_text=True))
    first = next(iter(material.manifests.values()))
    about = [[name, _show(first.get(name))] for name in ("created", "git_sha")]
    for part in ("hardware", "fingerprints", "versions"):
        about += [[f"{part}: {name}", _show(value)] for name, value in (first.get(part) or {}).items()]
    label = next(iter(material.manifests))
    blocks.append(Table(f"Manifest of {label}", ["entry", "value"], [row for row in about if row[1]], is_text=True))
    return blocks


def _show(value: Any) -> str:
    if value is None or value == [] or value == "":
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _displacement(material: Material) -> list[Block]:
    return [*pictures.draw_displacement(material.scene)]


def _accuracy(material: Material) -> list[Block]:
    return [*pictures.draw_accuracy(material.scene)]


def _tradeoff(material: Material) -> list[Block]:
    return [*pictures.draw_tradeoff(material.scene)]


def _quadrants(material: Material) -> list[Block]:
    return [*pictures.draw_quadrants(material.scene)]


def _trajectory(material: Material) -> list[Block]:
    return [*pictures.draw_trajectory(material.scene)]


def _theory(material: Material) -> list[Block]:
    blocks: list[Block] = [*pictures.draw_theory(material.scene)]
    theory = material.findings.theory
    if theory is None:
        blocks.append(
            Paragraph("No prediction stands beside the measurements: no theory table, or fewer than two constant λ.")
        )
        return blocks
    is_forecast = theory["optimizer"] is not None
    unit = "nats, at DPO's margin" if is_forecast else "order only"
    rows = [
        [
            row["label"],
            f"{row['predicted_chosen']:+.2f}",
            f"{row['measured_chosen']:+.2f}",
            f"{100 * row['predicted_accuracy']:.1f}" if is_forecast else f"{row['predicted_accuracy']:+.1f}",
            f"{100 * row['measured_accuracy']:.1f}",
        ]
        for row in theory["rows"]
    ]
    columns = [
        "run", f"chosen, predicted ({unit})", "chosen, measured (nats)",
        f"accuracy, predicted ({'%' if is_forecast else 'order only'})", "accuracy, measured (%)",
    ]  # fmt: skip
    blocks.append(Table(f"{theory['source']}, and what training measured", columns, rows))
    blocks.append(Paragraph(theory["statement"]))
    if theory["reason"]:
        blocks.append(Paragraph(f"Its reason before training: {theory['reason']}", tone="note"))
    return blocks


def _pairs(material: Material) -> list[Block]:
    return show_pairs(material.findings, material.texts, material.n_pairs)


def _data(material: Material) -> list[Block]:
    columns = ["run", "rows", "scored", "left out", "truncated", "merged boundary", "identical", "duplicate", "ties"]
    rows, reasons = [], []
    for run in material.findings.comparison.scored:
        summary = _read_summary(run.path)
        counts = summary.get("counts") or {}
        excluded = _count_excluded(run.path)
        names = ("n_rows", "n_truncated", "n_boundary_merged", "n_identical", "n_duplicate")
        n_rows, *odd = (_show(counts.get(name)) or "-" for name in names)
        ties = int((run.frame["reward_margins"] == 0).sum()) if run.is_referenced else "-"
        rows.append([run.label, n_rows, str(len(run.frame)), str(sum(excluded.values())), *odd, str(ties)])
        reasons += [f"{run.label}: {n} left out, {reason}." for reason, n in excluded.items()]
    blocks: list[Block] = [Table("What happened to the scored pairs", columns, rows)]
    trained = []
    for label, manifest in material.manifests.items():
        part = (manifest.get("data") or {}).get("train") or {}
        for reason, n in (part.get("n_excluded") or {}).items():
            trained.append(f"{label}, training pairs: {n} of {part.get('n_rows')} left out, {reason}.")
        for name in ("n_truncated", "n_boundary_merged", "n_identical", "n_duplicate"):
            if part.get(name):
                what = name.removeprefix("n_").replace("_", " ")
                trained.append(f"{label}, training pairs: {part[name]} {what}.")
    found = [*reasons, *trained]
    nothing = Paragraph("Nothing was left out, truncated, merged, identical or twice there.")
    return [*blocks, Bullets(found) if found else nothing]


def _count_excluded(path: Any) -> dict[str, int]:
    return split_scored(read_table(path))[1]


def _read_summary(path: Any) -> dict[str, Any]:
    try:
        summary = json.loads(summary_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def _checks(material: Material) -> list[Block]:
    rows = []
    for run in material.findings.comparison.scored:
        beta = run.about.get("beta")
        if not run.is_referenced or beta is None:
            rows.append([run.label, "-", "-", "-", "no reference or no beta"])
            continue
        check = check_margin_identity(_identity_columns(run.frame), float(beta))
        numbers = [f"{check[name]:.6g}" for name in ("from_means", "mean_margin", "difference")]
        rows.append([run.label, *numbers, "holds" if check["holds"] else "FAILS"])
    columns = ["run", "β × (change of chosen − change of rejected)", "mean margin", "difference", "identity"]
    note = (
        "The mean margin must equal β times the difference of the mean changes. It is a check of this report against "
        "its own tables: it fails where rewards were made with another β or another reference than the table says."
    )
    return [Table("The margin identity", columns, rows), Paragraph(note, tone="note")]


def _identity_columns(frame: Any) -> Mapping[str, Any]:
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps", "chosen_rewards")
    columns = {name: frame[name].to_numpy(float) for name in (*names, "rejected_rewards", "reward_margins")}
    for side in ("chosen", "rejected"):
        columns[f"{side}_displacement"] = columns[f"{side}_logps"] - columns[f"ref_{side}_logps"]
    return columns


def _reproduce(material: Material) -> list[Block]:
    scored = material.findings.comparison.scored
    lines = [f"dpotool report {shlex.join(material.paths)}", f"dpotool compare {shlex.join(material.paths)}"]
    trained = []
    for run in scored:
        if material.manifests[run.label]["kind"] == "train":
            path = str(run.folder.path)
            trained.append(f"dpotool train --config {shlex.quote(path)}/run.yaml --output {shlex.quote(path)}-again")
            trained.append(f"dpotool score {shlex.quote(path)}-again")
    blocks: list[Block] = [
        Paragraph("The page again, from the tables, without any model:"),
        Code("\n".join(lines)),
    ]
    if trained:
        blocks += [
            Paragraph("The runs again. On the same machine and versions the numbers repeat; see the manifest above."),
            Code("\n".join(trained)),
        ]
    sources = [f"{run.label}: {run.path}" for run in scored]
    if material.findings.theory:
        sources.append(f"theory: {material.findings.theory['path']}")
    blocks += [Subheading("Tables read"), Bullets(sources)]
    return blocks


SECTIONS: dict[str, tuple[str, Callable[[Material], list[Block]]]] = {
    "verdict": ("Verdict", _verdict),
    "models": ("Models compared", _models),
    "displacement": ("Displacement", _displacement),
    "accuracy": ("Accuracy against λ", _accuracy),
    "tradeoff": ("Trade-off", _tradeoff),
    "quadrants": ("Which way the pairs moved", _quadrants),
    "trajectory": ("While training", _trajectory),
    "theory": ("Predicted and measured", _theory),
    "pairs": ("Worst and best pairs", _pairs),
    "data": ("Data problems", _data),
    "checks": ("Self-check", _checks),
    "setup": ("Setup and manifest", _setup),
    "reproduce": ("How to reproduce", _reproduce),
}
"""Address -> heading, and what makes its content."""
