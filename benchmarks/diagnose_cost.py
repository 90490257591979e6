"""What `diagnose` takes beside `score`, on the same pairs under the same two models, each in a process of its own.

    python benchmarks/diagnose_cost.py --case MODEL REFERENCE PAIRS.jsonl 48 --write     # into docs/performance.md

Rows go to benchmarks/diagnose.jsonl as they come; of a case that was measured again the newest counts.

Time is the processor's, on one thread, which other processes hardly change. What starting and loading take is left out:
each command is also run on one pair, and the difference is the work on the others. Memory is the peak of the process.
The store of values is empty before each command, as `diagnose` has no use for it, and `score` does without its noise
floor, which would be in its favour.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dry_run import run
from harness import DOCS, Row, append_row, describe_machine, name_of, read_newest_rows
from page import format_table, replace_section

from dpotool.cache.entries import store_root

ROWS = Path(__file__).parent / "diagnose.jsonl"
COMMANDS = {
    "score": ("score", "--no-noise-floor"),
    "diagnose --no-mass": ("diagnose", "--no-mass"),
    "diagnose": ("diagnose",),
}
AIMS = {"diagnose --no-mass": 1.5, "diagnose": 2.5}
"""Times the time of `score`; its memory should not be above 1.3 times that of `score`."""


def measure(model: str, reference: str, data: str, n_pairs: int) -> Iterator[Row]:
    """Yields a row for each command, the first being `score`, with which the others are compared."""
    score: tuple[float, int] | None = None
    for name, (command, *options) in COMMANDS.items():
        outcomes = []
        for n in (1, n_pairs):
            shutil.rmtree(store_root(), ignore_errors=True)
            words = (command, model, "--reference", reference, "--data", data, "--limit", str(n), *options)
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(run((*words, "--dtype", "float32", "--output", "out"), Path(folder)))
        one, all_ = outcomes
        seconds, peak = all_.processor_seconds - one.processor_seconds, all_.peak_bytes
        score = score or (seconds, peak)
        yield {
            "model": name_of(model),
            "pairs": f"{n_pairs} of {Path(data).stem}",
            "command": name,
            "s": seconds,
            "times `score`": seconds / score[0],
            "at most": AIMS.get(name),
            "peak, MiB": peak / 2**20,
            "times that of `score`": peak / score[1],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=4, action="append", metavar=("MODEL", "REFERENCE", "PAIRS", "N"), default=[])
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DPOTOOL_CACHE"] = cache  # nobody's store but this one's is emptied
        for *paths, n_pairs in args.case:
            model, reference, data = (str(Path(path).absolute()) for path in paths)
            for row in measure(model, reference, data, int(n_pairs)):
                append_row(ROWS, row)
    about = f"{describe_machine()}, one thread; float32. Command: `python benchmarks/diagnose_cost.py`."
    if args.write:
        table = format_table(read_newest_rows(ROWS, ("model", "pairs", "command")))
        replace_section(DOCS, "diagnose", f"{about}\n\n{table}")


if __name__ == "__main__":
    main()
