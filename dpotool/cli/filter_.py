"""`dpotool filter`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import typer

from dpotool.cli.console import Console
from dpotool.cli.validate import PAIRS
from dpotool.cli.verbs import add_verb
from dpotool.settings.reading import FilterConfig
from dpotool.wording import count


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool filter pairs.jsonl --by edit_similarity --keep 0.5"
    add_verb(app, "filter", FilterConfig, positionals=(PAIRS,), epilog=epilog)(run)


def run(config: FilterConfig, console: Console, pairs: str | None) -> None:
    """Split pairs into safe and risky ones by a measure, and write each part to a file in the format of the source."""
    from dpotool.curation.filtering import filter_pairs

    result = filter_pairs(replace(config, data=pairs or config.data), progress=console)
    manifest = result.manifest
    n_dropped = count(manifest["n_dropped"], "pair is", "pairs are")
    console.answer(
        f"{count(manifest['n_kept'], 'pair is', 'pairs are')} kept and {n_dropped} dropped: those with the "
        f"{manifest['risky']} values of `{manifest['by']}` ({manifest['measure']})."
    )
    rows = [[part, str(manifest[f"n_{part}"]), _format(manifest[part]["mean"])] for part in ("kept", "dropped")]
    console.table("", ["pairs", "number", f"mean {manifest['by']}"], rows)
    if manifest["n_kept_without_value"]:
        console.say(f"{manifest['n_kept_without_value']} of the pairs that are kept have no value of this measure.")
    if manifest["n_malformed"]:
        console.say(
            f"{count(manifest['n_malformed'], 'malformed row is', 'malformed rows are')} in neither file; the "
            "manifest lists them."
        )
    console.say(f"kept: {result.kept}")
    if manifest["n_dropped"]:
        console.say(f"dropped: {result.dropped}")
    console.say(f"manifest: {result.path}")
    console.say(f"Next: dpotool train --data {result.kept} --eval-data {manifest['source']['data']}")
    console.finish(
        {"manifest": str(result.path), "kept_file": str(result.kept), "dropped_file": str(result.dropped)} | manifest
    )


def _format(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"
