"""The sections of a report, in their order: the answer first, then how it was found, and a glossary at the end."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpotool.compare.compared_table import EFFECTS_TITLE, tabulate_comparison, tabulate_effects, tabulate_seeds
from dpotool.compare.controls import CONTROLS_TITLE, tabulate_controls
from dpotool.compare.diagnosed_run import make_visible
from dpotool.compare.diagnosis import say_diagnosis
from dpotool.compare.findings import Findings
from dpotool.compare.win_rates import describe_judged, state_result
from dpotool.errors import DpotoolError
from dpotool.plots.registry import NEEDS, PlotKind, find_plots
from dpotool.plots.scene import Scene
from dpotool.report.blocks import Block, Bullets, Paragraph, Picture, Section, Table
from dpotool.report.pairs import TextSource, show_foreign_scores, show_pairs
from dpotool.report.record import check_itself, describe_setup, list_data_problems, say_how_to_repeat
from dpotool.report.render import DPI
from dpotool.settings.reading import ReportConfig
from dpotool.stats.intervals import format_interval


@dataclass(frozen=True, slots=True)
class Material:
    """All that a report is made from."""

    findings: Findings
    scene: Scene
    texts: TextSource
    paths: list[str]
    """What the user named."""
    config: ReportConfig
    """The settings of the report."""
    dpi: int
    """Dots per inch of the figures."""


def build_sections(material: Material) -> list[Section]:
    """Returns every section of the page, in order; one that has nothing to show says why."""
    drawn = [_show_figures(heading, kinds, material) for heading, kinds in group_plots().items()]
    figures = [section for section in drawn if section is not None]
    opening, closing = (
        [Section(id_, title, build(material)) for id_, (title, build) in part.items()] for part in (_OPENING, _CLOSING)
    )
    return [*opening, *figures, *closing]


def group_plots() -> dict[str, list[PlotKind]]:
    """Returns heading -> the kinds of pictures under it in a report, by rank."""
    groups: dict[str, list[PlotKind]] = {}
    for kind in find_plots().values():
        if kind.section is not None:
            groups.setdefault(kind.section, []).append(kind)
    return groups


def _show_figures(heading: str, kinds: Sequence[PlotKind], material: Material) -> Section | None:
    """The figures under one heading, and what words and tables add to them; its address is the first figure's name.

    None where there is nothing to draw of what a report can do without.
    """
    id_ = kinds[0].name
    extra = [kind for kind in kinds if NEEDS[kind.needs].is_extra]
    found = [kind for kind in extra if any(NEEDS[kind.needs].find(run) for run in material.scene.everything)]
    kinds = [kind for kind in kinds if kind not in extra or kind in found]
    blocks: list[Block] = [draw_figure(kind, material.scene, material.dpi) for kind in kinds]
    reasons = dict.fromkeys(block.text for block in blocks if isinstance(block, Paragraph))
    pictures = [block for block in blocks if isinstance(block, Picture)]
    if not pictures and all(NEEDS[kind.needs].is_extra for kind in kinds):
        return None
    notes = [Paragraph(reason, tone="note") for reason in reasons]
    words = _ABOVE_FIGURES[id_](material) if id_ in _ABOVE_FIGURES else []
    more = _BESIDE_FIGURES[id_](material) if id_ in _BESIDE_FIGURES else []
    return Section(id_, heading, [*words, *pictures, *notes, *more])


def draw_figure(kind: PlotKind, scene: Scene, dpi: int = DPI) -> Picture | Paragraph:
    """Returns the picture, at the same size whatever its dots per inch, or a sentence why there is none."""
    try:
        drawing = scene.draw(kind)
    except DpotoolError as error:
        return Paragraph(f"There is no figure here: {error}.", tone="note")
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    width, height = (round(DPI * inches) for inches in drawing.figure.get_size_inches())
    return Picture(kind.name, buffer.getvalue(), " ".join(drawing.alt.split()), kind.caption, width, height)


_CRITERIA = ("displaced", "rejected_falls_more", "ranking_kept", "mass_near_chosen")
_VERDICT_COLUMNS = [
    "model", "verdict", "chosen answers fall", "rejected answers fall more", "ranks most pairs right",
    "chosen tokens keep 90 % of their probability",
]  # fmt: skip


def _answer(material: Material) -> list[Block]:
    findings = material.findings
    blocks: list[Block] = [Paragraph(f"{findings.comparison.baseline}: {findings.statement}", tone="lead")]
    if findings.recommendation is not None:
        blocks.append(Paragraph(findings.recommendation.statement))
    blocks.append(Paragraph(f"What to do next: {findings.next_action}"))
    rows = []
    for label, verdict in findings.verdicts.items():
        states = [verdict.criteria[name] for name in _CRITERIA] if verdict else ["-"] * len(_CRITERIA)
        rows.append([label, findings.say_kind(label), *map(_say_state, states)])
    caption = (
        "The verdict on each model, from four questions. The answer is yes or no where the whole 95 % interval says "
        "so, and otherwise open."
    )
    return [*blocks, Table(caption, _VERDICT_COLUMNS, rows, is_text=True)]


def _say_state(state: str) -> str:
    return {"met": "yes", "failed": "no"}.get(state, state)


_SHOWN_ABOVE = ("log pi(chosen)", "perplexity (chosen)", "accuracy, %", "displacement")
_ALONE: tuple[tuple[str, str, str, float], ...] = (
    ("log π(chosen), nats", "chosen_logps", "z.2f", 1),
    ("its change from the reference", "chosen_displacement", "+z.2f", 1),
    ("perplexity of chosen", "chosen_perplexity", "#.4g", 1),
    ("pairs whose chosen answer fell, %", "chosen_displaced_share", "z.1f", 100),
    ("log π(rejected), nats", "rejected_logps", "z.2f", 1),
    ("reward margin", "reward_margins", "z.3f", 1),
    ("reward accuracy, %", "reward_accuracy", "z.1f", 100),
)
"""Column -> metric of the runs table, format, scale."""


def _models(material: Material) -> list[Block]:
    findings = material.findings
    rows = [
        [str(run["label"]), *(_read_interval(run, metric, form, scale) for _, metric, form, scale in _ALONE)]
        for run in findings.comparison.runs.to_dict("records")
    ]
    caption = "Each model by itself: means over pairs with 95 % bootstrap intervals"
    blocks: list[Block] = [Table(caption, ["model", *(title for title, *_ in _ALONE)], rows)]
    if findings.comparison.differences:
        columns, cells = tabulate_comparison(findings.comparison, findings.verdicts, findings.win_rates)
        left_out = {columns.index(name) for name in _SHOWN_ABOVE}
        columns, *cells = ([cell for i, cell in enumerate(row) if i not in left_out] for row in (columns, *cells))
        caption = (
            f"Differences from {findings.comparison.baseline} over the same pairs, in nats unless it says otherwise, "
            "with 95 % bootstrap intervals and p-values adjusted by Holm's method"
        )
        blocks.append(Table(caption, columns, cells))
    if findings.seeds:
        caption = (
            "Settings that were trained with several seeds, against the baseline of the same seed. These intervals "
            "cover training as well as pairs."
        )
        blocks.append(Table(caption, *tabulate_seeds(findings.seeds)))
    if findings.controls.checks:
        blocks.append(Table(CONTROLS_TITLE, *tabulate_controls(findings.controls)))
    if findings.sentences:
        blocks.append(Bullets(findings.sentences))
    blocks += [Paragraph(problem, tone="warning") for problem in findings.comparison.problems]
    return blocks


def _read_interval(run: Mapping[Any, Any], metric: str, form: str, scale: float) -> str:
    interval = {"value": run[metric], "ci_low": run[f"{metric}_low"], "ci_high": run[f"{metric}_high"]}
    return format_interval(interval, form, scale)


_FORECAST = (
    "Before any training, `dpotool theory-gap` took one optimiser step and measured, for each λ, what it does to pairs "
    "that the step was not taken from. A single step has no length of its own, so the predicted changes are scaled to "
    "the margin that DPO reached in training. Everything else is forecast. Changes are in nats."
)
_PRINTED = (
    "The printed theorem gives the direction of a first step but not its size, so only the order of its numbers is "
    "compared."
)


def _lay_theory_beside(material: Material) -> list[Block]:
    theory = material.findings.theory
    if theory is None:
        return [Paragraph(f"No prediction stands beside the measurements: {material.findings.no_theory}.")]
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
    unit = "" if is_forecast else " (only the order counts)"
    columns = [
        "run", f"change of log π(chosen), predicted{unit}", "change of log π(chosen), measured",
        f"accuracy, predicted{', %' if is_forecast else unit}", "accuracy, measured, %",
    ]  # fmt: skip
    blocks: list[Block] = [Paragraph(_FORECAST if is_forecast else _PRINTED)]
    blocks.append(Table(f"{theory['source']}, and what training measured", columns, rows))
    blocks.append(Paragraph(theory["statement"]))
    if theory["reason"]:
        blocks.append(Paragraph(f"The reason given before training: {theory['reason']}", tone="note"))
    return blocks


def _tell_diagnosis(material: Material) -> list[Block]:
    """What the diagnosis says in sentences, and which vocabulary items gained and lost most."""
    found = material.scene.need_diagnosis()
    blocks: list[Block] = [Bullets(say_diagnosis(found.summary, found.label))]
    vocabulary = found.summary.get("vocabulary")
    if vocabulary:
        rows = [
            [str(rank + 1), *_name_item(vocabulary["gained"], rank), *_name_item(vocabulary["lost"], rank)]
            for rank in range(_N_ITEMS)
        ]
        caption = "Vocabulary items that gained and lost most probability, summed over all places of the chosen answers"
        blocks.append(Table(caption, ["", "gained", "by", "lost", "by"], rows))
    return blocks


_N_ITEMS = 6


def _name_item(items: Sequence[Mapping[str, Any]], rank: int) -> tuple[str, str]:
    if rank >= len(items):
        return "", ""
    return repr(make_visible(items[rank]["token"])), f"{items[rank]['change']:+.2f}"


def _pairs(material: Material) -> list[Block]:
    shown = show_pairs(material.findings, material.texts, material.config.pairs, material.scene.diagnosis)
    return [*shown, *show_foreign_scores(material.findings, material.config.seed)]


def _setup(material: Material) -> list[Block]:
    return describe_setup({run.label: run.manifest for run in material.findings.comparison.scored})


def _effects(material: Material) -> list[Block]:
    comparison = material.findings.comparison
    if not comparison.differences:
        return [Paragraph("There is only one model here, so there is no difference to measure.")]
    return [Table(EFFECTS_TITLE.format(baseline=comparison.baseline), *tabulate_effects(comparison))]


_WORDS = [
    ["log π(chosen)", "The log-probability of the whole preferred answer under a model, summed over its tokens, in "
     "nats, and averaged over pairs. One nat less means that the answer is 2.7 times less likely. log π(rejected) is "
     "the same for the other answer."],
    ["reference", "The model as it was before training. Changes are measured against it."],
    ["displacement", "A fall of log π(chosen) below the reference, though training was meant to favour these answers."],
    ["verdict", "“no fall”: the chosen answers do not fall. “benign”: they fall, but the rejected answers fall more, "
     "most pairs are still ranked right, and chosen tokens keep 90 % of their probability. “harmful”: one of these "
     "three is shown to fail. “unclear”: these pairs do not tell."],
    ["margin", "β × (change of log π(chosen) − change of log π(rejected)). This is what DPO raises."],
    ["accuracy", "The share of pairs with a margin above 0. A margin of exactly 0 counts as wrong."],
    ["perplexity", "How many equally likely tokens the model hesitates between, on average over the tokens of the "
     "chosen answers. It rises as log π(chosen) falls."],
    ["λ", "The factor on the rejected answer's reward in DPO-Shift. 1 is DPO; smaller values push the rejected answer "
     "down less. “λ=0.75→1 ↑” rises over the steps; “λ per pair” is chosen for each pair from its gradients."],
    ["Pareto front", "The runs that no other run beats in both likelihood and accuracy."],
    ["[low, high]", "A 95 % interval over test pairs. It says nothing about another training run, unless a table says "
     "that it was made over seeds."],
    ["p", "How often chance alone would show a difference as large, adjusted for the number of models by Holm's "
     "method. Below 0.05 the difference is called beyond chance."],
]  # fmt: skip


def _words(_: Material) -> list[Block]:
    return [Table("What the words and signs mean", ["word", "meaning"], _WORDS, is_text=True)]


Build = Callable[[Material], list[Block]]
_OPENING: dict[str, tuple[str, Build]] = {
    "verdict": ("The answer, and what to do next", _answer),
    "models": ("Models compared", _models),
}
"""Address -> heading, and what makes its content; before the figures."""


def _tell_win_rates(material: Material) -> list[Block]:
    """Which run answers better than the baseline, with interval, and what is to be known of the judge."""
    judged = material.findings.judged
    if not judged:
        return []
    results = [state_result(run.label, str(run.summary["baseline"]), run.summary) for run in judged]
    return [Bullets([*results, *describe_judged(judged, material.findings.win_rate_and_displacement)[1:]])]


_ABOVE_FIGURES: dict[str, Build] = {"spans": _tell_diagnosis, "win-rate": _tell_win_rates}
"""Anchor of a section of figures -> the text above them."""
_BESIDE_FIGURES: dict[str, Build] = {"forecast": _lay_theory_beside}
"""Anchor of a section of figures -> the text below them."""
_CLOSING: dict[str, tuple[str, Build]] = {
    "pairs": ("Most and least displaced pairs", _pairs),
    "data": ("Data problems", lambda material: list_data_problems(material.findings)),
    "setup": ("Settings and versions", _setup),
    "reproduce": ("How to reproduce", lambda each: say_how_to_repeat(each.findings, each.paths, each.config)),
    "effects": ("Effect sizes and ties", _effects),
    "checks": ("Self-check", lambda material: check_itself(material.findings)),
    "words": ("Words on this page", _words),
}
"""Likewise, after the figures."""
