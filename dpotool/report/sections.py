"""The sections of a report, in their order: what was found first, how it was found after it."""

from __future__ import annotations

from collections.abc import Callable

from dpotool.compare.compared_table import EFFECTS_TITLE, tabulate_comparison, tabulate_effects, tabulate_seeds
from dpotool.report import pictures
from dpotool.report.blocks import Block, Bullets, Paragraph, Section, Table
from dpotool.report.foreign_scores import show_foreign_scores
from dpotool.report.material import Material
from dpotool.report.pair_choice import show_pairs
from dpotool.report.record import check_itself, describe_setup, list_data_problems
from dpotool.report.repeat import say_how_to_repeat

_CRITERIA = ("displaced", "rejected_falls_more", "ranking_kept", "mass_near_chosen")
_VERDICT_COLUMNS = [
    "model", "verdict", "chosen answers fall", "rejected fall more", "ranks most pairs right",
    "keeps 90 % of the chosen tokens' probability",
]  # fmt: skip


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
        rows.append([label, findings.say_kind(label), *map(_say_state, states)])
    caption = "Verdict on each model by four questions: yes or no where the whole 95 % interval says so, else open"
    return [*blocks, Table(caption, _VERDICT_COLUMNS, rows, is_text=True)]


def _say_state(state: str) -> str:
    return {"met": "yes", "failed": "no"}.get(state, state)


_WORDS = [
    ["log π(chosen)", "Log-probability of the whole preferred answer under a model, summed over its tokens, in nats "
     "(1 nat less: the answer is 2.7 times less likely). Averaged over pairs. Likewise log π(rejected)."],
    ["reference", "The model as it was before training. Changes are measured against it."],
    ["displacement", "A fall of log π(chosen) below the reference, though training was meant to favour these answers."],
    ["verdict", "none: the chosen answers do not fall. benign: they fall, but the rejected ones fall more, most pairs "
     "are still ranked right, and chosen tokens keep 90 % of their probability. harmful: one of these three is shown "
     "to fail. unclear: these pairs do not tell."],
    ["margin", "β × (change of log π(chosen) − change of log π(rejected)). What DPO raises."],
    ["accuracy", "Share of pairs with a margin above 0; a margin of exactly 0 counts as wrong."],
    ["λ", "Factor on the rejected answer's reward in DPO-Shift. 1 is DPO; smaller values push the rejected answer down "
     "less. “λ=0.75→1 ↑” rises over the steps; “λ per pair” is chosen for each pair from its gradients."],
    ["[low, high]", "95 % interval over test pairs. It says nothing about another training run, unless a table says "
     "that it was made over seeds."],
    ["p", "How often chance alone would show a difference as large, adjusted for the number of models (Holm). Below "
     "0.05 it is called beyond chance."],
]  # fmt: skip


def _words(material: Material) -> list[Block]:
    return [Table("What the words and signs mean", ["word", "meaning"], _WORDS, is_text=True)]


def _models(material: Material) -> list[Block]:
    findings = material.findings
    columns, rows = tabulate_comparison(findings.comparison, findings.verdicts)
    verdict = columns.index("displacement")  # has a table of its own, above
    columns, *rows = ([*row[:verdict], *row[verdict + 1 :]] for row in (columns, *rows))
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


def _displacement(material: Material) -> list[Block]:
    return [*pictures.draw_displacement(material.scene, material.dpi)]


def _accuracy(material: Material) -> list[Block]:
    return [*pictures.draw_accuracy(material.scene, material.dpi)]


def _tradeoff(material: Material) -> list[Block]:
    return [*pictures.draw_tradeoff(material.scene, material.dpi)]


def _quadrants(material: Material) -> list[Block]:
    return [*pictures.draw_quadrants(material.scene, material.dpi)]


def _trajectory(material: Material) -> list[Block]:
    return [*pictures.draw_trajectory(material.scene, material.dpi)]


_FORECAST = (
    "Before any training, `dpotool theory-gap` took one optimiser step from the gradients of the pairs and read off "
    "what it does to pairs it was not taken from, for each λ. Such a step has no length of its own: predicted changes "
    "are those at which DPO reaches the margin it did reach. So DPO's margin is borrowed from the measurement; all "
    "else is forecast. Changes in nats."
)
_PRINTED = (
    "The printed theorem gives the direction of a first step, not its size: only the order of its numbers is compared."
)


def _theory(material: Material) -> list[Block]:
    blocks: list[Block] = [*pictures.draw_theory(material.scene, material.dpi)]
    theory = material.findings.theory
    if theory is None:
        blocks.append(Paragraph(f"No prediction stands beside the measurements: {material.findings.no_theory}."))
        return blocks
    is_forecast = theory["optimizer"] is not None
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
    unit = "" if is_forecast else ", order only"
    columns = [
        "run", f"change of log π(chosen), predicted{unit}", "change of log π(chosen), measured",
        f"accuracy, predicted{', %' if is_forecast else unit}", "accuracy, measured, %",
    ]  # fmt: skip
    blocks.append(Paragraph(_FORECAST if is_forecast else _PRINTED))
    blocks.append(Table(f"{theory['source']}, and what training measured", columns, rows))
    blocks.append(Paragraph(theory["statement"]))
    if theory["reason"]:
        blocks.append(Paragraph(f"Its reason before training: {theory['reason']}", tone="note"))
    return blocks


def _pairs(material: Material) -> list[Block]:
    shown = show_pairs(material.findings, material.texts, material.config.pairs)
    return [*show_foreign_scores(material), *shown]


def _setup(material: Material) -> list[Block]:
    return describe_setup(material.manifests)


SECTIONS: dict[str, tuple[str, Callable[[Material], list[Block]]]] = {
    "verdict": ("Verdict", _verdict),
    "words": ("Words on this page", _words),
    "models": ("Models compared", _models),
    "displacement": ("Displacement", _displacement),
    "accuracy": ("Accuracy against λ", _accuracy),
    "tradeoff": ("Trade-off", _tradeoff),
    "quadrants": ("Which way the pairs moved", _quadrants),
    "trajectory": ("While training", _trajectory),
    "theory": ("Predicted and measured", _theory),
    "pairs": ("Worst and best pairs", _pairs),
    "data": ("Data problems", list_data_problems),
    "checks": ("Self-check", check_itself),
    "setup": ("Setup and manifest", _setup),
    "reproduce": ("How to reproduce", say_how_to_repeat),
}
"""Address -> heading, and what makes its content."""
