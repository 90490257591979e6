"""Everything public that dpotool writes, made on the built-in model and compared between two versions of the code.

    python tests/snapshot.py make /tmp/before          # in the old checkout
    python tests/snapshot.py make /tmp/after           # in the new one
    python tests/snapshot.py compare /tmp/before /tmp/after

`make` runs every command in a short form, offline, and records the JSON that it prints, its exit code, its error line,
the summaries that it leaves, and the columns, metadata and values of each table. `compare` fails where something that
was there is gone or has another value; what is new is listed and is no failure. `--allow PATTERN` names a change that
was announced in CHANGELOG.md, as a regular expression over the path of the entry.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

TRAIN = ("train", "--limit", "64", "--eval-limit", "40", "--max-steps", "2", "--batch-size", "16")
COMMANDS: dict[str, tuple[str, ...]] = {
    "train-dpo": (*TRAIN, "--output", "runs/dpo"),
    "train-shift": (*TRAIN, "--loss", "shift", "--lambda", "0.75", "--output", "runs/shift", "--monitor-theory"),
    "score": ("score", "runs/dpo", "runs/shift", "--tokens"),
    "score-csv": ("score", "runs/dpo", "--limit", "10", "--format", "csv", "--output", "runs/csv"),
    "score-jsonl": ("score", "runs/dpo", "--limit", "10", "--format", "jsonl", "--output", "runs/jsonl"),
    "score-dry": ("score", "runs/dpo", "--dry-run"),
    "compare": ("compare", "runs/dpo", "runs/shift"),
    "compare-csv": ("compare", "runs/dpo", "runs/shift", "--format", "csv"),
    "theory": ("theory-gap", "--limit", "24", "--output", "runs/start"),
    "predict": ("predict", "runs/dpo", "--limit", "24"),
    "diagnose": ("diagnose", "runs/dpo", "--limit", "24"),
    "blend": ("blend", "runs/dpo", "runs/shift", "--weight", "0.5", "--limit", "24", "--output", "runs/blend"),
    "generate": ("generate", "runs/dpo", "--limit", "6", "--max-new-tokens", "8"),
    "validate": ("validate", "--limit", "60"),
    "filter": ("filter", "--limit", "40", "--by", "random", "--keep", "0.5"),
    "sweep": (
        *("sweep", "--lambdas", "0.5,1.0", "--limit", "64", "--eval-limit", "40", "--max-steps", "2"),
        *("--batch-size", "16", "--output", "runs/sweep"),
    ),
    "plot": ("plot", "all", "runs/sweep"),
    "report": ("report", "runs/sweep", "-o", "report.md"),
    "import": ("import", "runs/csv/scores", "--output", "runs/imported"),
    "cache": ("cache", "ls"),
    "unknown-run": ("score", "runs/nothing"),
    "unknown-option": ("train", "--no-such-option"),
    "bad-loss": ("train", "--loss", "nothing"),
    "bad-lambda": ("train", "--loss", "shift", "--lambda", "-1"),
}
NO_JSON = ("compare-csv", "unknown-option")
VOLATILE = re.compile(
    r"second|_at$|time|created|git|version|hardware|devices|peak|bytes|probe|path|folder|host|platform|threads|"
    r"last_used|^(dpotool_)?written$|^root$"
)
"""Keys whose values differ from run to run, or name a place on this machine."""


def run(words: tuple[str, ...], work: Path, as_json: bool) -> dict[str, Any]:
    """Runs one command in the folder and returns its exit code, its JSON (or its text) and its last line of stderr."""
    command = [sys.executable, "-m", "dpotool", *words, *(["--json"] if as_json else [])]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    printed: Any = done.stdout
    if as_json and done.returncode == 0:
        printed = json.loads(done.stdout)
    return {"exit_code": done.returncode, "printed": printed, "error": errors[-1] if errors else None}


def read_table(path: Path) -> dict[str, Any]:
    """Returns the columns with types, units and definitions, the metadata and the values of a table."""
    table = pq.read_table(path)
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    about.pop("pandas", None)
    if "dpotool_metadata" in about:
        about["dpotool_metadata"] = json.loads(about["dpotool_metadata"])
    fields = {
        field.name: {"type": str(field.type), **{k.decode(): v.decode() for k, v in (field.metadata or {}).items()}}
        for field in table.schema
    }
    return {"columns": fields, "metadata": about, "values": table.to_pydict()}


def read_files(work: Path) -> Iterator[tuple[str, Any]]:
    """Yields what lies in the folder: summaries, manifests, tables, headers of CSV files, and names of all others."""
    for path in sorted(work.rglob("*")):
        name = str(path.relative_to(work))
        if path.is_dir() or name.startswith("cache"):
            continue
        if path.name.endswith(".summary.json"):
            yield name, json.loads(path.read_text())
        elif path.suffix == ".parquet":
            yield name, read_table(path)
        elif path.name == "run.yaml":
            yield name, yaml.safe_load(path.read_text())
        elif path.name == "metrics.jsonl":
            yield name, [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".csv":
            yield name, path.read_text().splitlines()[0]
        else:
            yield name, "present"


def make(target: Path) -> None:
    """Runs all commands in an empty folder and writes `snapshot.json` into it."""
    shutil.rmtree(target, ignore_errors=True)
    work = target / "work"
    work.mkdir(parents=True)
    printed = {}
    for name, words in COMMANDS.items():
        print(name, flush=True)
        printed[name] = run(words, work, name not in NO_JSON)
    found = {"printed": printed, "files": dict(read_files(work))}
    (target / "snapshot.json").write_text(json.dumps(found, indent=1, default=str))


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every leaf with its path; what changes from run to run is left out."""
    if isinstance(value, dict):
        for key, each in value.items():
            if not VOLATILE.search(str(key)) or "/" in str(key):
                yield from flatten(each, f"{path} > {key}" if path else str(key))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from flatten(each, f"{path}[{place}]")
    else:
        yield path, value


def is_same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two leaves are equal; numbers within a relative tolerance, NaN equal to NaN."""
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def compare(before: Path, after: Path, allowed: list[str], tolerance: float) -> int:
    """Prints what is gone, changed and new; returns how many entries are gone or changed without being announced."""
    old, new = (dict(flatten(json.loads((each / "snapshot.json").read_text()))) for each in (before, after))
    is_allowed = re.compile("|".join(allowed) or "$^").search
    wrong = [
        f"gone: {path} (was {value!r:.80})"
        if path not in new
        else f"changed: {path}: {value!r:.80} -> {new[path]!r:.80}"
        for path, value in old.items()
        if not is_allowed(path) and (path not in new or not is_same(value, new[path], tolerance))
    ]
    fresh = sorted({re.sub(r"\[\d+\]", "[]", path) for path in new.keys() - old.keys()})
    for line in [*(f"new: {path}" for path in fresh), *wrong]:
        print(line)
    print(f"{len(old)} entries before, {len(new)} after: {len(wrong)} gone or changed, {len(fresh)} kinds new")
    return len(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make").add_argument("target", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    both.add_argument("--allow", action="append", default=[], help="regular expression over an entry's path")
    both.add_argument("--tolerance", type=float, default=1e-6, help="relative difference allowed between two numbers")
    told = parser.parse_args()
    if told.command == "make":
        make(told.target)
    else:
        sys.exit(bool(compare(told.before, told.after, told.allow, told.tolerance)))


if __name__ == "__main__":
    main()
