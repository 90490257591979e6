"""Prints the estimates of `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from dpotool.cli.console import Console, format_bytes, format_duration

if TYPE_CHECKING:
    from dpotool.estimates.estimate import Estimate


def show_dry_run(plan: Callable[[], Iterable[Estimate]], console: Console) -> list[dict[str, Any]]:
    """Prints each estimate of `plan` when it is made, and returns them all. No built-in model is trained for it."""
    from dpotool.models.builtin import standing_in

    shown = []
    with standing_in():
        for estimate in plan():
            _show(estimate, console)
            shown.append(estimate.to_dict())
    return shown


def _show(estimate: Estimate, console: Console) -> None:
    """Prints pairs, tokens, hits in the store, time by stage and peak memory, and what the figures rest on."""
    in_all = f"about {format_duration(estimate.total_seconds)} and {format_bytes(estimate.peak_bytes)} of memory"
    console.say(f"{estimate.command} would take {in_all}.")
    rows = [[f"pairs, {name}", str(n)] for name, n in estimate.n_pairs.items()]
    rows += [["tokens", f"{estimate.n_tokens:,}"], ["padded tokens", f"{estimate.n_padded_tokens:,}"]]
    if estimate.batch_tokens:
        rows += [["tokens a batch", f"{estimate.batch_tokens:,}"]]
    rows += [[f"in the store, {name}", str(n)] for name, n in estimate.n_cached.items()]
    rows += [[f"time, {stage}", format_duration(seconds)] for stage, seconds in estimate.seconds.items()]
    rows += [["time in all", format_duration(estimate.total_seconds)]]
    rows += [["peak memory", format_bytes(estimate.peak_bytes)]]
    if estimate.card_bytes:
        rows += [["on one GPU, by formula", format_bytes(estimate.card_bytes)]]
    console.table(f"Estimate for {estimate.command}", ["", ""], rows)
    console.answer(f"This rests on measurements: {'; '.join(estimate.probe)}.")
    console.say("Nothing was written.")
