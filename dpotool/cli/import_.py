"""`dpotool import`."""

from __future__ import annotations

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.foreign.config import ImportConfig

_FILE = Positional(
    "file",
    str,
    "TRL's trainer_state.json, rewardbench's _outputs.jsonl or _all.jsonl, or a .pt dict of tensors.",
    required=True,
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool import checkpoint-500/trainer_state.json --beta 0.1"
    add_verb(app, "import", ImportConfig, positionals=(_FILE,), epilog=epilog)(run)


def run(config: ImportConfig, console: Console, file: str) -> None:
    """Read what another tool logged or scored into a run folder, for plot, compare and report."""
    from dpotool.foreign.run import import_file

    result = import_file(file, config)
    if result.left_out:
        console.warn(f"{file}: left out, as no column by pair: {', '.join(result.left_out)}")
    console.say(f"{result.kind}: {result.n_rows} rows to {result.path}")
    console.finish(
        {
            "path": str(result.path),
            "folder": str(result.folder.path),
            "kind": result.kind,
            "n_rows": result.n_rows,
            "left_out": result.left_out,
        }
    )
