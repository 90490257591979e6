"""What help and docs say of losses, from their entries. Imports nothing heavy.

`python -m dpotool.losses.page docs/losses.md` writes the table of that page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from dpotool.losses.options import ChoiceOption, LossOption, NumberOption
from dpotool.losses.registry import LOSSES, find_losses, get_loss
from dpotool.losses.spec import SFT_WEIGHT, LossSpec
from dpotool.settings.fields import KindOption, flag_of

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


def list_loss_options(loss: str | None = None) -> list[KindOption]:
    """Returns the options of a loss, each with its default; or of all, each once, with what it is to which loss."""
    if loss is not None:
        return [_as_option(option, option.help, option.default_text) for option in get_loss(loss).all_options]
    found: dict[str, dict[str, LossOption]] = {}
    for spec in find_losses().values():
        for option in spec.all_options:
            found.setdefault(option.name, {})[spec.name] = option
    return [
        _as_option(
            next(iter(users.values())),
            "; ".join(f"{loss}: {option.help} (default {option.default_text})" for loss, option in users.items()) + ".",
        )
        for users in found.values()
    ]


def _as_option(option: LossOption, text: str, default: str = "") -> KindOption:
    is_choice = isinstance(option, ChoiceOption)
    choices = tuple(option.choices) if isinstance(option, ChoiceOption) else ()
    return KindOption(option.name, str if is_choice else float, text, default, choices)


def describe_losses() -> dict[str, str]:
    """Returns each loss's name with its line of help."""
    return {spec.name: spec.about for spec in find_losses().values()}


def explain_loss(name: str) -> dict[str, str]:
    """Returns what help says of one loss."""
    spec = get_loss(name)
    known = {
        "what for": spec.about,
        "per pair": spec.formula,
        "where": "a = log pi/pi_ref of the chosen answer, b = that of the rejected one, s = sigmoid, |.| = tokens",
        "needs": ", ".join(sorted(spec.needs)),
        "is dpo at": spec.is_dpo_at,
        "source": spec.source,
        "also": ", ".join(spec.aliases),
    }
    return {title: text for title, text in known.items() if text}


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
    """Returns the text between the two marks."""
    shared = f"Every loss but `sft` also takes {_describe_option(SFT_WEIGHT)}: {SFT_WEIGHT.help}."
    return "\n\n".join([BEGIN, write_table(LOSSES.values()), shared, write_purposes(LOSSES.values()), END])


def renew(page: str) -> str:
    """Returns a page with a new table between its two marks."""
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
