"""Everything worth measuring on a GPU, most valuable first, in the minutes there are.

    python benchmarks/device.py --packages                               # what it needs, and what is missing here
    python benchmarks/device.py --minutes 8 --out DIR                    # tests, then measurements
    python benchmarks/device.py --device cpu --minutes 3 --out DIR       # a rehearsal: the same code on miniatures
    python benchmarks/device.py --write DIR/rows.jsonl                   # what was measured, into docs/performance.md

Each part works in a process of its own with a limit of its own, so that its memory is free afterwards and its failure
stops nothing. Every result is written at once: `rows.jsonl`, the table `page.md`, tracebacks in `errors.txt`, what was
printed in `parts.log`, and in `tests.log`. What there is no time for, or no package, is left out and named.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from page import format_table, replace_section

HERE = Path(__file__).parent
ROOT = HERE.parent
DOCS = ROOT / "docs" / "performance.md"
ROWS = HERE / "device.jsonl"
"""What was measured so far; rows of a part in a later run replace those of an earlier one."""
TESTS = "tests/test_gpu.py"
TEST_PARTS = {"tests": ("gpu and not distributed", 130), "launched tests": ("gpu and distributed", 300)}
"""Name -> which tests by their markers, and the most seconds they may take. Launched processes load for minutes."""
LOADING_SECONDS = 60
OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED")
GRACE_SECONDS = 4
"""Before a part's end it starts nothing new, and so long after it it is ended."""
PACKAGES = {
    "torch": "everything",
    "transformers": "everything",
    "accelerate": "everything",
    "safetensors": "everything",
    "tokenizers": "everything",
    "numpy": "everything",
    "jaxtyping": "everything",
    "psutil": "everything",
    "pandas": "everything",
    "pyarrow": "everything",
    "pyyaml": "everything",
    "scipy": "everything",
    "typer": "commands, in the tests",
    "rich": "commands, in the tests",
    "seaborn": "the study's pictures",
    "pytest": "the tests",
    "pytest-xdist": "the tests, several at a time",
    "hypothesis": "the tests",
    "beartype": "the tests",
    "peft": "training at 8B, a test with LoRA",
    "bitsandbytes": "tests of 4-bit bases",
    "trl": "the rival",
    "datasets": "the rival",
    "dill": "the rival (datasets)",
    "multiprocess": "the rival (datasets)",
    "xxhash": "the rival (datasets)",
    "fsspec": "the rival (datasets)",
    "jinja2": "the rival",
}
"""Package -> what cannot be done without it."""


def list_packages() -> list[str]:
    """Returns a line a package: its name, the version here or that it is missing, and what needs it."""
    lines = []
    for name, purpose in PACKAGES.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "MISSING"
        lines.append(f"{name:16} {found:16} {purpose}")
    return lines


def list_parts() -> list[str]:
    """Returns the names of the parts: those that `device.jsonl` has nothing of first, then as they are listed."""
    from device_parts import PARTS

    known = {row["part"] for row in read_rows(ROWS) if "left out" not in row} if ROWS.exists() else set()
    first, launched = TEST_PARTS
    parts = [first, *PARTS, launched]
    return sorted(parts, key=lambda part: (part == "study", part in known and part not in ("rates", first)))


def environment() -> dict[str, str]:
    """Returns the variables that every part runs with: this checkout first, no network, output at once."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": path, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def run_limited(command: Sequence[str], seconds: float, log: Path) -> str:
    """Runs a command for at most so long; returns how it ended, in words."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(command)}\n")
        file.flush()
        try:
            done = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                cwd=ROOT,
                env=environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
    return "finished" if done.returncode == 0 else f"ended with {done.returncode}"


def run_tests(args: argparse.Namespace, part: str, time_left: float) -> dict[str, object]:
    """Runs tests with the marker gpu; on a CPU, where all of those are skipped, ordinary tests in their place."""
    log = args.out / f"{part}.log"
    markers, most = TEST_PARTS[part]
    seconds = min(most * args.patience, time_left)
    is_gpu = args.device != "cpu"
    targets = ["-m", markers, TESTS] if is_gpu else [TESTS, "tests/likelihood/test_batch.py"]
    command = [sys.executable, "-m", "pytest", "-v", "-x" if not is_gpu else "--maxfail=20", "-p", "no:cacheprovider"]
    if is_gpu and _has("pytest-xdist"):
        command += ["-n", "8"]
    started = time.time()
    end = run_limited([*command, *targets], seconds, log)
    return {"part": part, "ended": end, "seconds": time.time() - started, **count_outcomes(log.read_text())}


def count_outcomes(log: str) -> dict[str, object]:
    """Returns what `pytest -v` has printed of its tests, also where it was stopped before its end."""
    lines = [line.split() for line in log.splitlines() if "tests/" in line and "::" in line]
    outcomes: dict[str, str] = {}
    for words in lines:  # "[gw1] [ 5%] PASSED tests/..." of several workers, "tests/... PASSED" of one
        name = next((word for word in words if word.startswith("tests/") and "::" in word), "")
        outcomes[name] = next((word for word in words if word in OUTCOMES), outcomes.get(name, ""))
    outcomes.pop("", None)
    counts = {word.lower(): sum(found == word for found in outcomes.values()) for word in OUTCOMES}
    failed = [name.rpartition("::")[2] for name, found in outcomes.items() if found in ("FAILED", "ERROR")]
    unfinished = sum(not found for found in outcomes.values())
    return {"tests": len(outcomes), **counts, "not finished": unfinished, "failing": ", ".join(failed)}


def _has(package: str) -> bool:
    return "MISSING" not in next(line for line in list_packages() if line.startswith(package))


def run_all(args: argparse.Namespace) -> None:
    """Runs the tests, then one part after the other while there is time."""
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + 60 * args.minutes
    waiting = list(args.only)
    while waiting:
        if waiting[0] in TEST_PARTS:
            append(args.out, run_tests(args, waiting[0], deadline - time.time()))
            waiting = waiting[1:]
        else:
            together = list(itertools.takewhile(lambda part: part not in TEST_PARTS, waiting))
            waiting = run_worker(args, together, deadline) + waiting[len(together) :]
        write_page(args.out)


def run_worker(args: argparse.Namespace, parts: list[str], deadline: float) -> list[str]:
    """Runs parts in one process, which saves loading the libraries for each; returns those that it did not get to.

    A process that overruns a part's limit is ended, and so is one whose device has failed; the next one goes on behind
    that part.
    """
    progress = args.out / "progress.txt"
    progress.unlink(missing_ok=True)
    options = ["--deadline", str(deadline), "--patience", str(args.patience), "--device", args.device]
    command = [sys.executable, __file__, "--run-parts", *parts, *options, "--out", str(args.out)]
    with (args.out / "parts.log").open("a", encoding="utf-8") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment())
        limit = min(time.time() + LOADING_SECONDS * args.patience, deadline)
        while worker.poll() is None and time.time() < limit:
            time.sleep(0.2)
            lines = progress.read_text(encoding="utf-8").splitlines() if progress.exists() else []
            limit = float(lines[-1].split("\t")[1]) if lines else limit
        was_late = worker.poll() is None
        if was_late:
            worker.kill()
        code = worker.wait()
    begun = [line.split("\t")[0] for line in progress.read_text().splitlines()] if progress.exists() else []
    progress.unlink(missing_ok=True)
    if code:
        end = "stopped: its time was over" if was_late else f"the process ended with {code}"
        append(args.out, {"part": begun[-1] if begun else parts[0], "what": "all that was left of it", "failed": end})
    if not begun:
        return parts[1:]
    return parts[parts.index(begun[-1]) + 1 :] if code else []


def append(out: Path, row: dict[str, object]) -> None:
    """Writes a row at once."""
    line = json.dumps(row, default=str)
    print(line, flush=True)
    with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def merge_rows(path: Path) -> list[dict[str, object]]:
    """Adds rows to `device.jsonl`, where a part that was measured again is replaced; returns all of them."""
    new = [row for row in read_rows(path) if row.keys() & {"device", "model", "rows of", "what", "tests", "study of"}]
    new = [row for row in new if "left out" not in row]
    parts = {row["part"] for row in new}
    kept = [row for row in read_rows(ROWS) if row["part"] not in parts] if ROWS.exists() else []
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *new]), encoding="utf-8")
    return [*kept, *new]


def format_page(rows: Sequence[dict[str, object]]) -> str:
    """Lays the rows out: a table a part, then what failed or was left out."""
    sections = []
    for part in dict.fromkeys(str(row["part"]) for row in rows):
        own = [{name: value for name, value in row.items() if name != "part"} for row in rows if row["part"] == part]
        remarks = [row for row in own if ("failed" in row and "what" in row) or "left out" in row]
        tables: dict[tuple[str, ...], list[dict[str, object]]] = {}
        for row in own:
            if row not in remarks:
                tables.setdefault(tuple(row), []).append(row)
        texts = [format_table(table) for table in tables.values()]
        texts += [f"- {row.get('what', part)}: {row.get('failed') or row.get('left out')}" for row in remarks]
        sections.append(f"### {part[0].upper()}{part[1:]}\n\n" + "\n\n".join(texts))
    return "\n\n".join(sections)


def write_page(out: Path) -> None:
    (out / "page.md").write_text(format_page(read_rows(out / "rows.jsonl")) + "\n", encoding="utf-8")


def run_parts(args: argparse.Namespace) -> None:
    """Runs parts in this process; `progress.txt` tells the one that waits which began, and until when it may take."""
    import torch
    from device_parts import PARTS, Bench

    device = torch.device("cuda" if args.device == "auto" and torch.cuda.is_available() else args.device)
    for part in args.run_parts:
        run, least, most = PARTS[part]
        left = args.deadline - time.time()
        if left < least:
            append(args.out, {"part": part, "left out": f"no time: {left:.0f} s left, {least:.0f} s needed"})
            continue
        end = min(args.deadline, time.time() + most * args.patience)
        with (args.out / "progress.txt").open("a", encoding="utf-8") as file:
            file.write(f"{part}\t{end + GRACE_SECONDS}\n")
        files = {"rows": args.out / "rows.jsonl", "errors": args.out / "errors.txt"}
        bench = Bench(part, device, is_small=device.type == "cpu", deadline=end - GRACE_SECONDS, **files)
        started = time.time()
        bench.attempt(part, lambda run=run, bench=bench: run(bench))  # type: ignore[misc]
        append(args.out, {"part": part, "seconds of the whole part": time.time() - started})
        write_page(args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal with miniatures")
    parser.add_argument("--minutes", type=float, default=8.0, help="all there is; nothing is started that does not fit")
    parser.add_argument("--out", type=Path, default=Path("device-results"), help="folder for what was found")
    parser.add_argument("--only", nargs="+", help="parts to run, in this order, instead of all")
    parser.add_argument("--packages", action="store_true", help="list the packages it needs, and leave")
    parser.add_argument(
        "--write", type=Path, metavar="ROWS", help=f"measure nothing; put these rows into {ROWS.name} and {DOCS.name}"
    )
    parser.add_argument("--patience", type=float, default=1.0, help="factor on every limit but --minutes")
    parser.add_argument("--run-parts", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    return args


def main() -> None:
    args = parse_arguments()
    if args.packages:
        print("\n".join(list_packages()))
    elif args.write:
        from device_memory import add_formula

        rows = [add_formula(row) if row.keys() >= {"command", "peak GiB"} else row for row in merge_rows(args.write)]
        replace_section(DOCS, "device", format_page(rows))
    elif args.run_parts:
        run_parts(args)
    else:
        args.only = args.only or list_parts()
        run_all(args)


if __name__ == "__main__":
    main()
