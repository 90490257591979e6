"""Writes the table of losses in docs/losses.md from their entries: `python -m dpotool.losses.page docs/losses.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from dpotool.losses.options import LossOption, NumberOption
from dpotool.losses.registry import LOSSES
from dpotool.losses.spec import SFT_WEIGHT, LossSpec
from dpotool.settings import flag_of

BEGIN = "<!-- losses: generated from the entries by `make docs`; do not edit by hand -->"
END = "<!-- end of losses -->"
WIDE = 1.0
"""Upper ends above it are there to refuse nonsense, and say nothing of a loss."""
_NEEDS = {
    "reference": "a reference",
    "lengths": "lengths",
    "tokens": "log-probabilities of first tokens",
    "scores": "scores",
}


def write_table(losses: Iterable[LossSpec]) -> str:
    """Returns the losses as Markdown: formula, options, what each takes, and where it is DPO."""
    lines = [
        "| loss | per pair | options (default; range where it is narrow) | takes | DPO at | source |",
        "|---|---|---|---|---|---|",
    ]
    for spec in losses:
        options = "<br>".join(map(_describe_option, spec.options))
        if spec.takes_lambda:
            options += "<br>and lambda, as below"
        needs = ", ".join(text for need, text in _NEEDS.items() if need in spec.needs)
        at = spec.is_dpo_at.replace("_", r"\_")
        lines.append(f"| `{spec.name}` | ${spec.latex}$ | {options} | {needs} | {at} | {_link(spec.source)} |")
    return "\n".join(lines)


def write_purposes(losses: Iterable[LossSpec]) -> str:
    """Returns what each loss is for, and the names that other tools have for it."""
    lines = ["| loss | what it is for | also known as |", "|---|---|---|"]
    for spec in losses:
        lines.append(f"| `{spec.name}` | {spec.about} | {', '.join(f'`{name}`' for name in spec.aliases)} |")
    return "\n".join(lines)


def write_section() -> str:
    """Returns all that stands between the two marks."""
    shared = f"Every loss but `sft` also takes {_describe_option(SFT_WEIGHT)}: {SFT_WEIGHT.help}."
    return "\n\n".join([BEGIN, write_table(LOSSES.values()), shared, write_purposes(LOSSES.values()), END])


def renew(page: str) -> str:
    """Returns a page with what stands between its marks written anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + write_section() + after


def _describe_option(option: LossOption) -> str:
    range_ = option.describe_range()
    if isinstance(option, NumberOption):
        range_ = range_.removeprefix("a number, ").replace(option.name, "x").replace("<=", "≤").replace("<", "&lt;")
    is_wide = isinstance(option, NumberOption) and option.high > WIDE
    return f"`{flag_of(option.name)}` ({option.default_text}{'' if is_wide else f'; {range_}'})"


def _link(source: str) -> str:
    number = source.removeprefix("arXiv:")
    return source if number == source else f"[{number}](https://arxiv.org/abs/{number})"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
