"""The pairs a reader should see, with their texts, and what scores made elsewhere tell of how pairs changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dpotool.compare.findings import Findings
from dpotool.compare.pair_scores import find_pair_scores, relate_to_change
from dpotool.compare.scored_run import ScoredRun
from dpotool.report.blocks import Block, PairText, Paragraph, Subheading, Table
from dpotool.stats.wording import format_interval

_CAPTION = (
    "Rank correlation of imported scores of the pairs with the change of log π(chosen), with 95 % bootstrap intervals "
    "over pairs. A value of -1 means that the pairs with the highest score lost most."
)


@dataclass(frozen=True, slots=True)
class Texts:
    """One pair's texts, chat messages written out."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class TextSource:
    """The texts that could be found, by pair_id, and why not where they could not."""

    texts: Mapping[int, Texts] = field(default_factory=dict)
    problem: str | None = None


def choose_pairs(run: ScoredRun, n: int) -> tuple[list[int], list[int]]:
    """Returns the pair_ids of the n lowest and the n highest changes of the chosen log-likelihood, extremes first.

    No pair is in both; the same number of pairs is left for each where there are fewer than 2 n.
    """
    change = run.scored["chosen_displacement"].sort_values(kind="stable")
    n = min(n, len(change) // 2)
    worst, best = change.index[:n], change.index[::-1][:n]
    return [int(each) for each in worst], [int(each) for each in best]


def show_pairs(findings: Findings, source: TextSource, n: int) -> list[Block]:
    """Returns the chosen pairs with texts and with what the baseline and the recommended model make of them."""
    base = findings.base
    if not base.is_referenced:
        return [Paragraph(f"{base.label} was scored without a reference, so it is not known how any pair changed.")]
    runs = {run.label: run for run in findings.comparison.scored}
    best_label = (findings.recommendation or {}).get("recommended", base.label)
    shown = [base] if best_label == base.label else [base, runs[best_label]]
    worst, best = choose_pairs(base, n)
    blocks: list[Block] = [
        Paragraph(f"Pairs are ordered by how log π(chosen) changed under {base.label}.", tone="note")
    ]
    if source.problem:
        blocks.append(Paragraph(f"The texts cannot be shown: {source.problem}", tone="warning"))
    for title, pair_ids in (("Most displaced", worst), ("Least displaced", best)):
        blocks.append(Subheading(title))
        blocks += [_show_pair(pair_id, shown, source.texts.get(pair_id)) for pair_id in pair_ids]
    return blocks


def _show_pair(pair_id: int, runs: list[ScoredRun], texts: Texts | None) -> PairText:
    numbers = "; ".join(_describe(run, pair_id) for run in runs if pair_id in run.scored.index)
    found = texts or Texts("", "", "")
    return PairText(f"Pair {pair_id}", numbers, found.prompt, found.chosen, found.rejected)


def _describe(run: ScoredRun, pair_id: int) -> str:
    [row] = run.scored.loc[[pair_id]].to_dict("records")
    chosen, rejected = (float(row[f"{side}_displacement"]) for side in ("chosen", "rejected"))
    return f"{run.label}: chosen {chosen:+.2f}, rejected {rejected:+.2f} nats, margin {row['reward_margins']:+.3f}"


def show_foreign_scores(findings: Findings, seed: int) -> list[Block]:
    """A row per imported column, a column per run; nothing where no folder holds imported scores."""
    comparison = findings.comparison
    found, problems = find_pair_scores(findings.folders, findings.base)
    rows = []
    for name, table in found:
        for column in table.select_dtypes("number"):
            related = [relate_to_change(run, table[column], seed=seed) for run in comparison.scored]
            ns = sorted({n for n, _ in related})
            cells = [format_interval(each) for _, each in related]
            rows.append([f"{name}: {column}", " to ".join(map(str, dict.fromkeys((ns[0], ns[-1])))), *cells])
    blocks: list[Block] = [Paragraph(problem, tone="warning") for problem in problems]
    if rows:
        blocks.append(Table(_CAPTION, ["score", "pairs", *(run.label for run in comparison.scored)], rows))
    return blocks
