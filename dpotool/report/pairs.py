"""The pairs a reader should see, with their texts, and how well scores that another tool gave them (CHES, similarities)
rank them by displacement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from msgspec.structs import asdict

from dpotool.compare.diagnosed_run import DiagnosedRun, make_visible, show_text
from dpotool.compare.diagnosis import SPAN_TEXTS
from dpotool.compare.findings import Findings
from dpotool.compare.scored_run import ScoredRun
from dpotool.errors import DpotoolError
from dpotool.report.blocks import Block, PairText, Paragraph, Subheading, Table, TokenText
from dpotool.runs.folder import RunFolder
from dpotool.stats.bootstrap import read_clusters
from dpotool.stats.correlation import correlate_ranks
from dpotool.stats.intervals import format_interval
from dpotool.wording import count

_CAPTION = (
    "Rank correlation of imported scores of the pairs with the change of log π(chosen), with 95 % bootstrap intervals "
    "over pairs. A value of -1 means that the pairs with the highest score lost most."
)

STEPS = (0.1, 0.5, 2.0)
"""Nats from which a token is shown to have moved a little, clearly, and far."""
_LEGEND = (
    "Tokens are coloured by the change of their log-probability from the reference, in steps from "
    f"{STEPS[0]:g}, {STEPS[1]:g} and {STEPS[2]:g} nats: orange with a full line below where it fell, blue with a "
    "dashed line where it rose. A dotted frame: the other answer does not have this token. Point at a token for its "
    "numbers; ↵ is a line break."
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


def show_pairs(findings: Findings, source: TextSource, n: int, diagnosis: DiagnosedRun | None = None) -> list[Block]:
    """Returns the chosen pairs with texts and with what the baseline and the recommended model make of them.

    Args:
        diagnosis: whose tokens are shown where it is of the baseline and has looked into the pair.
    """
    base = findings.base
    if not base.is_referenced:
        return [Paragraph(f"{base.label} was scored without a reference, so it is not known how any pair changed.")]
    runs = {run.label: run for run in findings.comparison.scored}
    best_label = (findings.recommendation and findings.recommendation.recommended) or base.label
    shown = [base] if best_label == base.label else [base, runs[best_label]]
    worst, best = choose_pairs(base, n)
    blocks: list[Block] = [
        Paragraph(f"Pairs are ordered by how log π(chosen) changed under {base.label}.", tone="note")
    ]
    looked = None
    if diagnosis is not None and diagnosis.is_of(base) and not diagnosis.pairs.empty:
        looked = diagnosis
        blocks.append(Paragraph(_LEGEND, tone="note"))
        n_missing = sum(pair_id not in looked.pairs.index for pair_id in (*worst, *best))
        if n_missing:
            text = f"{count(n_missing, 'of these pairs has', 'of these pairs have')} no colours, "
            text += f"because only {count(len(looked.pairs), 'pair was', 'pairs were')} diagnosed."
            blocks.append(Paragraph(text, tone="note"))
    if source.problem:
        blocks.append(Paragraph(f"The texts cannot be shown: {source.problem}", tone="warning"))
    for title, pair_ids in (("Most displaced", worst), ("Least displaced", best)):
        blocks.append(Subheading(title))
        blocks += [_show_pair(pair_id, shown, source.texts.get(pair_id), looked) for pair_id in pair_ids]
    return blocks


def _show_pair(pair_id: int, runs: list[ScoredRun], texts: Texts | None, looked: DiagnosedRun | None) -> PairText:
    numbers = "; ".join(_describe(run, pair_id) for run in runs if pair_id in run.scored.index)
    found = texts or Texts("", "", "")
    prompt, chosen_text, rejected_text = map(show_text, (found.prompt, found.chosen, found.rejected))
    pair = PairText(f"Pair {pair_id}", numbers, prompt, chosen_text, rejected_text)
    if looked is None or pair_id not in looked.pairs.index:
        return pair
    chosen, rejected = (looked.get_tokens(pair_id, side) for side in ("chosen", "rejected"))
    return replace(
        pair,
        chosen_tokens=show_tokens(chosen),
        rejected_tokens=show_tokens(rejected),
        moved=_say_falls(chosen),
    )


def show_tokens(tokens: pd.DataFrame) -> list[TokenText]:
    """Returns an answer's tokens (columns of a diagnosis's `tokens`) as they are shown, with their numbers in words."""
    return [
        TokenText(
            make_visible(row["token"]) + ("\n" if str(row["token"] or "").endswith("\n") else ""),
            f"token {row['position'] + 1}, {SPAN_TEXTS[row['span']]}: {row['change']:+.3f} nats, probability "
            f"{np.exp(row['ref_logp']):.3g} before and {np.exp(row['logp']):.3g} after",
            _choose_tone(row["change"]),
            row["span"] == "divergent",
        )
        for row in tokens.to_dict("records")
    ]


def _choose_tone(change: float) -> str:
    step = int(np.searchsorted(STEPS, abs(change), side="right"))
    return f"{'fell' if change < 0 else 'rose'}-{step}" if step else ""


def _say_falls(tokens: pd.DataFrame) -> str:
    falls = tokens[tokens["change"] < 0].nsmallest(3, "change")
    if falls.empty:
        return "No token of the chosen answer fell."
    named = ", ".join(
        f"{make_visible(text)!r} ({change:+.2f})" for text, change in zip(falls["token"], falls["change"], strict=True)
    )
    return f"In the chosen answer these tokens fell most, in nats: {named}."


def _describe(run: ScoredRun, pair_id: int) -> str:
    [row] = run.scored.loc[[pair_id]].to_dict("records")
    chosen, rejected = (float(row[f"{side}_displacement"]) for side in ("chosen", "rejected"))
    return f"{run.label}: chosen {chosen:+.2f}, rejected {rejected:+.2f} nats, margin {row['reward_margins']:+.3f}"


def show_foreign_scores(findings: Findings, seed: int) -> list[Block]:
    """Returns a table with a row per imported column and a column per run; none if no folder has imported scores."""
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


def find_texts(findings: Findings, n_pairs: int) -> TextSource:
    """Reads the texts of the pairs that the report will show from the data that the baseline was scored on."""
    from dpotool.data.sources import load_texts, write_out

    base = findings.base
    if not base.is_referenced or n_pairs == 0:
        return TextSource()
    rows = base.about.rows
    if rows is None:
        return TextSource(problem="its score table does not say where the pairs are.")
    pair_ids = [pair_id for side in choose_pairs(base, n_pairs) for pair_id in side]
    try:
        pairs = load_texts(asdict(rows), base.split, pair_ids, base.about.fingerprints.data)
    except DpotoolError as error:
        return TextSource(problem=f"{error}.")
    return TextSource(
        {
            pair_id: Texts(write_out(pair.prompt), write_out(pair.chosen), write_out(pair.rejected))
            for pair_id, pair in pairs.items()
        }
    )


def read_pair_scores(path: Path) -> pd.DataFrame:
    """Returns a table that `dpotool import` made of tensors, by pair_id. Raises DpotoolError when it is none."""
    try:
        return pd.read_csv(path).set_index("pair_id")
    except (OSError, ValueError, KeyError) as error:
        raise DpotoolError(f"cannot be read ({error})", where=str(path), remedy="Import the file again") from None


def find_pair_scores(folders: Sequence[RunFolder], base: ScoredRun) -> tuple[list[tuple[str, pd.DataFrame]], list[str]]:
    """Returns by run the imported scores of the pairs that `base` was scored on, and a sentence on those of others."""
    found, problems = [], []
    data, split = str(base.data), str(base.split)
    for folder in folders:
        mine, tables = folder.table_path("imported", data, split, format="csv"), folder.list_tables("imported")
        if mine in tables:
            found.append((folder.name, read_pair_scores(mine)))
        problems += [
            f"{folder.name}: {path.name} names other pairs. If it belongs to these pairs, import it again with "
            f"--data {data} --split {split}."
            for path in tables
            if mine not in tables
        ]
    return found, problems


def relate_to_change(run: ScoredRun, scores: pd.Series, *, seed: int = 0) -> tuple[int, dict[str, float] | None]:
    """Returns over how many pairs, and Spearman's rank correlation of scores and change of log pi(chosen), in nats.

    The interval is a bootstrap over pairs, over prompts where they repeat; None without a reference, with fewer than
    3 pairs, or where all have one value.

    Args:
        scores: one number a pair, by pair_id.
    """
    both = run.scored.join(scores.rename("score"), how="inner").dropna(subset=["score"])
    if not run.is_referenced:
        return len(both), None
    change = both["chosen_displacement"].to_numpy(dtype=np.float64)
    return len(both), correlate_ranks(both["score"].to_numpy(dtype=np.float64), change, read_clusters(both), seed)
