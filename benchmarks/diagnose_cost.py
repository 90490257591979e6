"""What `diagnose` takes beside `score`, on the same pairs under the same two models, each in a process of its own.

    python benchmarks/diagnose_cost.py MODEL REFERENCE PAIRS.jsonl --write          # into docs/performance.md

Time is by the clock, so nothing else may be running. What starting and loading take is left out: each command is also
run on a few pairs, and the difference is the work on the others. Memory is the peak of the process. The store of values
is empty before each command, as `diagnose` has no use for it, and `score` does without its noise floor.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dry_run import run
from harness import DOCS, Row, describe_machine, name_of
from page import format_table, replace_section

from dpotool.cache.root import store_root

FEW = 2
CASES = {
    "score": ("score", "--no-noise-floor"),
    "diagnose --no-mass": ("diagnose", "--no-mass"),
    "diagnose": ("diagnose",),
}
ALLOWED = {"diagnose --no-mass": "1.5 and 1.3", "diagnose": "2.5 and 1.3"}


def measure(model: str, reference: str, data: str, n_pairs: int) -> Iterator[Row]:
    """Yields a row for each command, the first being `score`, with which the others are compared."""
    score: tuple[float, int] | None = None
    for name, (command, *options) in CASES.items():
        outcomes = []
        for n in (FEW, n_pairs):
            shutil.rmtree(store_root(), ignore_errors=True)
            words = (command, model, "--reference", reference, "--data", data, "--limit", str(n), *options)
            with tempfile.TemporaryDirectory() as folder:
                outcomes.append(run((*words, "--output", "out"), Path(folder)))
        few, all_ = outcomes
        seconds, peak = all_.seconds - few.seconds, all_.peak_bytes
        score = score or (seconds, peak)
        yield {
            "command": name,
            "s": seconds,
            "times `score`": seconds / score[0],
            "peak, MiB": peak / 2**20,
            "times `score`'s": peak / score[1],
            "aimed at most at": ALLOWED.get(name),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("reference")
    parser.add_argument("data")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DPOTOOL_CACHE"] = cache  # nobody's store but this one's is emptied
        paths = (str(Path(each).resolve()) for each in (args.model, args.reference, args.data))
        for row in measure(*paths, args.pairs):
            print(row, flush=True)
            rows.append(row)
    about = f"{name_of(args.model)} on {args.pairs} pairs of {Path(args.data).stem}"
    text = f"{describe_machine()}; {about}. Command: `python benchmarks/diagnose_cost.py`.\n\n{format_table(rows)}"
    if args.write:
        replace_section(DOCS, "diagnose", text)


if __name__ == "__main__":
    main()
