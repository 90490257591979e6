"""The table that lays scores of pairs made elsewhere beside what training did to the same pairs."""

from __future__ import annotations

from dpotool.compare.pair_scores import find_pair_scores, relate_to_change
from dpotool.report.blocks import Block, Paragraph, Table
from dpotool.report.material import Material
from dpotool.stats.wording import format_interval

_CAPTION = (
    "Imported scores of the pairs: rank correlation with the change of log π(chosen), 95 % bootstrap intervals over "
    "pairs; -1: the pairs with the highest score lost most"
)


def show_foreign_scores(material: Material) -> list[Block]:
    """A row per imported column, a column per run; nothing where no folder holds imported scores."""
    comparison = material.findings.comparison
    base = next(run for run in comparison.scored if run.label == comparison.baseline)
    found, problems = find_pair_scores(material.findings.folders, base)
    rows = []
    for name, table in found:
        for column in table.select_dtypes("number"):
            related = [relate_to_change(run, table[column], seed=material.config.seed) for run in comparison.scored]
            ns = sorted({n for n, _ in related})
            cells = [format_interval(each) for _, each in related]
            rows.append([f"{name}: {column}", " to ".join(map(str, dict.fromkeys((ns[0], ns[-1])))), *cells])
    blocks: list[Block] = [Paragraph(problem, tone="warning") for problem in problems]
    if rows:
        blocks.append(Table(_CAPTION, ["score", "pairs", *(run.label for run in comparison.scored)], rows))
    return blocks
