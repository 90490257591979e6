"""Recomputes the win rates of DPO-Shift's published judgments, and what answer length had to do with them.

    python benchmarks/published_judgments.py FOLDER --write

FOLDER holds answers/ and judgments/ of github.com/Meaquadddd/DPO-Shift as .jsonl.gz (FastChat's layout, and question_id
with the judge's reply). --write puts the tables into docs/paper-check.md; without it they are printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from page import replace_section

from dpotool.compare.win_rates import summarize_judgments
from dpotool.judging.answer_summary import summarize_answers
from dpotool.judging.answers import Answer, read_answers
from dpotool.judging.imports import import_judgments
from dpotool.judging.judgments import are_identical, build_judgment_frame
from dpotool.stats.intervals import format_interval

PAGE = Path(__file__).parents[1] / "docs" / "paper-check.md"
SETS = {
    "UltraFeedback, SFT": ("sft-vs-dpo", "sft"),
    "UltraFeedback, λ = 0.55": ("shift-0.55-vs-dpo", "shift-0.55"),
    "UltraFeedback, λ = 0.75": ("shift-0.75-vs-dpo", None),
    "UltraFeedback, λ = 0.95": ("shift-0.95-vs-dpo", "shift-0.95"),
    "Capybara, λ = 0.95": ("capybara-shift-0.95-vs-dpo", None),
}
"""Title -> file of judgments, and the answers to it where they are at hand."""
ANSWERS = {"DPO": "dpo", "SFT": "sft", "λ = 0.55": "shift-0.55", "λ = 0.95": "shift-0.95"}
"""Title -> the answers at hand."""


def summarize(folder: Path, judgments: str, answers: str | None) -> dict[str, Any]:
    """Returns the summary of one file, with the number of identical answers where they are at hand."""
    ours = _read(folder, answers) if answers else {}
    theirs = _read(folder, "dpo") if answers else {}
    _, (found,) = import_judgments(str(folder / "judgments" / f"{judgments}.jsonl.gz"), ours, theirs)
    summary = summarize_judgments(build_judgment_frame(found.judgments))
    same = {id_ for id_ in ours if id_ in theirs and are_identical(ours[id_], theirs[id_])}
    said = [each.verdict for each in found.judgments if each.question_id in same]
    return summary | {"same": len(same), "same_but_decided": sum(verdict in ("win", "loss") for verdict in said)}


def _read(folder: Path, name: str) -> dict[str, Answer]:
    return {answer.question_id: answer for answer in read_answers(folder / "answers" / f"{name}.jsonl.gz")}


def write_tables(found: dict[str, dict[str, Any]]) -> str:
    """Returns both tables as Markdown."""
    lines = [
        "| answers | A / B / tie | none | doubtful | ties as half | without ties | ties as wins | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, summary in found.items():
        rates = [format_interval(summary["win_rate"][name], ".1f", 100) for name in summary["win_rate"]]
        counts = f"{summary['wins']} / {summary['losses']} / {summary['ties']}"
        p = f"{summary['p_value']:.1g}"
        row = [title, counts, str(summary["without_outcome"]), str(summary["doubtful"]), *rates, p]
        lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        "| answers | longer by, characters | longer preferred, % | win rate | at equal length | identical, decided |",
        "|---|---|---|---|---|---|",
    ]
    for title, summary in found.items():
        control = summary["length_control"]
        if control is None:
            continue
        row = [
            title,
            f"{control['mean_difference']:+.0f}",
            format_interval(control["longer_preferred"], ".1f", 100),
            format_interval(summary["win_rate"]["ties_half"], ".1f", 100),
            format_interval(control["win_rate"], ".1f", 100),
            f"{summary['same']}, {summary['same_but_decided']}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def tabulate_answers(folder: Path) -> str:
    """Returns what the answers themselves are like, as `dpotool generate FILE...` summarises them, as Markdown."""
    read = {title: list(_read(folder, name).values()) for title, name in ANSWERS.items()}
    lines = ["| answers | characters | longer than DPO's by | repeated 4-grams, % | DPO's word for word, % |"]
    lines.append("|---|---|---|---|---|")
    for title, answers in read.items():
        found = summarize_answers(answers, None if title == "DPO" else read["DPO"])
        longer = found["longer"] and found["longer"]["difference"]
        cells = [format_interval(found["characters"], ".0f"), format_interval(longer, "+.0f")]
        cells += [format_interval(found[name], ".1f", 100) for name in ("repetition", "identical")]
        lines.append(f"| {' | '.join([title, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    told = parser.parse_args()
    text = write_tables({title: summarize(told.folder, *names) for title, names in SETS.items()})
    answers = tabulate_answers(told.folder)
    if told.write:
        replace_section(PAGE, "published-judgments", text)
        replace_section(PAGE, "published-answers", answers)
    print(f"{text}\n\n{answers}")


if __name__ == "__main__":
    main()
