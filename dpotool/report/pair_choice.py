"""The pairs a reader should see: those whose chosen completion lost most under the baseline, and those that gained."""

from __future__ import annotations

from dpotool.compare.findings import Findings
from dpotool.compare.scored_run import ScoredRun
from dpotool.report.blocks import Block, PairText, Paragraph, Subheading
from dpotool.report.texts import Texts, TextSource


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
    runs = {run.label: run for run in findings.comparison.scored}
    base = runs[findings.comparison.baseline]
    if not base.is_referenced:
        return [Paragraph(f"{base.label} was scored without a reference, so no pair is displaced or not.")]
    best_label = (findings.recommendation or {}).get("recommended", base.label)
    shown = [base] if best_label == base.label else [base, runs[best_label]]
    worst, best = choose_pairs(base, n)
    blocks: list[Block] = [Paragraph(f"By the change of log π(chosen) under {base.label}.", tone="note")]
    if source.problem:
        blocks.append(Paragraph(f"Without texts: {source.problem}", tone="warning"))
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
