"""How far off `--dry-run` is: each command first with it, then for real, every time in a process of its own.

    python benchmarks/dry_run.py                                         # the built-in model
    python benchmarks/dry_run.py --model PATH pairs.jsonl ... --write    # a real one too; into docs/performance.md

Time is by the clock, so nothing else may be running. Loading is left out of both: as the dry run measured it, whose
imports and weights the system has in memory by then, as it has for the run. Memory is the process's peak. The store of
values is empty before each command.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import DOCS, Row, describe_machine, name_of
from page import format_table, replace_section

from dpotool.cache.entries import store_root
from dpotool.settings.shared import DEMO

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """A command to estimate and to run."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A process that ended well."""

    printed: dict[str, Any]
    seconds: float
    peak_bytes: int
    processor_seconds: float = 0.0


def list_cases(args: argparse.Namespace) -> list[Case]:
    """Returns the built-in model's commands, then those of the model that was named on each of the files."""
    cases = [
        Case("score, built-in model", ("score", DEMO)),
        Case("train, built-in model", ("train",)),
        Case("theory-gap, built-in model", ("theory-gap", "--limit", "120")),
    ]
    for path in args.data:
        about = f"{name_of(args.model)}, {Path(path).stem}"
        model, data = str(Path(args.model).resolve()), ("--data", str(Path(path).resolve()), "--limit", str(args.pairs))
        steps = ("--batch-size", "2", "--max-steps", str(args.steps), "--test-fraction", "0.25")
        cases += [
            Case(f"score, {about}", ("score", model, *data)),
            Case(f"train, {about}", ("train", "--model", model, *data, *steps)),
            Case(f"theory-gap, {about}", ("theory-gap", "--model", model, *data)),
        ]
    return [case for case in cases if case.name.startswith(tuple(args.only.split(",")))]


def run(words: Sequence[str], folder: Path) -> Outcome:
    """Runs a command in a folder, on the CPU; its messages go to stderr."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        command = [sys.executable, "-m", "dpotool", *words, "--device", "cpu", "--json"]
        process = subprocess.Popen(command, cwd=folder, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: exit code {process.returncode}")
        out.seek(0)
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Outcome(json.load(out), seconds, peak, used.ru_utime + used.ru_stime)


def measure(cases: Sequence[Case]) -> Iterator[Row]:
    """Estimates and runs each case, in an empty folder with an empty store."""
    warmed: set[str] = set()
    for case in cases:
        model = next((word for word in case.words if Path(word).is_dir()), DEMO)
        data = [word for word in case.words if Path(word).is_file()][:1]
        if model not in warmed:  # makes the built-in model, too
            with tempfile.TemporaryDirectory() as folder:
                run(["score", model, "--limit", "8", *(f"--data={path}" for path in data)], Path(folder))
            warmed.add(model)
        shutil.rmtree(store_root(), ignore_errors=True)
        with tempfile.TemporaryDirectory() as folder:
            planned = run([*case.words, "--dry-run"], Path(folder)).printed
            estimate = planned.get("estimates", [planned])[0]
            row = compare(case.name, estimate, run(case.words, Path(folder)))
        print(row, flush=True)
        yield row


def compare(name: str, estimate: Mapping[str, Any], real: Outcome) -> Row:
    """Lays an estimate beside what came of it."""
    loading = estimate["seconds"]["loading"]
    expected, taken = estimate["seconds"]["total"] - loading, real.seconds - loading
    return {
        "command": name,
        "pairs": ", ".join(f"{n} {set_}" for set_, n in estimate["n_pairs"].items()),
        "estimate, s": expected,
        "real, s": taken,
        "time off by": f"{expected / taken - 1:+.0%}",
        "estimate, MiB": estimate["peak_bytes"] / _MIB,
        "real, MiB": real.peak_bytes / _MIB,
        "memory off by": f"{estimate['peak_bytes'] / real.peak_bytes - 1:+.0%}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="JSONL files of pairs for --model")
    parser.add_argument("--model", help="folder of a checkpoint")
    parser.add_argument("--pairs", type=int, default=48, help="rows of each file; training keeps three quarters")
    parser.add_argument("--steps", type=int, default=9, help="of training, two pairs each")
    parser.add_argument("--only", default="score,train,theory-gap", help="commands, comma-separated")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    args = parser.parse_args()
    if args.data and args.model is None:
        parser.error("--model is not named")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DPOTOOL_CACHE"] = cache
        for row in measure(list_cases(args)):  # written as they come: the last ones take minutes
            rows.append(row)
            text = f"{describe_machine()}; float32. Command: `python benchmarks/dry_run.py`.\n\n{format_table(rows)}"
            if args.write:
                replace_section(DOCS, "dry-run", text)
    print(text)


if __name__ == "__main__":
    main()
