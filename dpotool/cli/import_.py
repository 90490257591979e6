"""`dpotool import`."""

from __future__ import annotations

import typer

from dpotool.cli.console import Console
from dpotool.cli.verbs import Positional, add_verb
from dpotool.settings.reading import ImportConfig
from dpotool.wording import count

_FILE = Positional(
    "file",
    str,
    "A training log: TRL's trainer_state.json or its folder, TensorBoard's events, the history of a Weights & Biases "
    "run as CSV, trackio's .db, LLaMA-Factory's trainer_log.jsonl. Or scores of pairs: reward-bench's JSON lines, or a "
    ".pt file with a dict of tensors.",
    required=True,
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    epilog = "Example: dpotool import checkpoint-500/trainer_state.json --beta 0.1"
    add_verb(app, "import", ImportConfig, positionals=(_FILE,), epilog=epilog)(run)


def run(config: ImportConfig, console: Console, file: str) -> None:
    """Turn a log or a table of another tool into a run folder that plot, compare and report can read."""
    from dpotool.foreign.run import import_file

    result = import_file(file, config)
    if result.left_out:
        console.warn(f"{file}: left out, because it has no value for each pair: {', '.join(result.left_out)}")
    console.say(f"Read {count(result.n_rows, 'row')} from {file} (format: {result.kind}).")
    console.say(f"table: {result.path}")
    console.say(f"Next: dpotool report {result.folder.path}")
    console.finish(
        {
            "path": str(result.path),
            "folder": str(result.folder.path),
            "kind": result.kind,
            "n_rows": result.n_rows,
            "left_out": result.left_out,
        }
    )
