"""Times scoring in one process and in two, a thread each, which must agree.

    python benchmarks/processes.py --model PATH pairs.jsonl --write

One and two processes take turns. Every launch loads the model, scores once without counting it and then times the
scoring of all pairs, from the moment when every process is ready to the moment when every one has all the results.
Without `--write` the table is only printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from accelerate import PartialState
from harness import DOCS, describe_machine, load_model, name_of
from page import format_table, replace_section
from workloads import load_sample

from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.loading import join_processes, load_tokenizer
from dpotool.models.precision import use_fast_float32_on_cpu


def work(args: argparse.Namespace) -> None:
    """Scores, as one of the processes; the first writes the seconds of each round and the values."""
    join_processes("cpu")
    use_fast_float32_on_cpu()
    state = PartialState()
    model = load_model(args.model)
    pairs = load_sample(args.data, load_tokenizer(args.model), args.pairs)
    seconds = []
    for _ in range(args.rounds + 1):
        state.wait_for_everyone()
        start = time.perf_counter()
        scored = compute_pair_logps(model, pairs, batch_tokens=args.batch_tokens)
        state.wait_for_everyone()
        seconds.append(time.perf_counter() - start)
    if state.is_main_process:
        found = {"seconds": seconds[1:], "chosen": scored.chosen.tolist(), "processes": state.num_processes}
        args.work.write_text(json.dumps(found))


def launch(n_processes: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Runs this file in so many processes and returns what the first one wrote."""
    out = Path(f"{args.out}.{n_processes}.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command += [__file__, args.data, "--model", args.model, "--work", str(out), "--pairs", str(args.pairs)]
    command += ["--rounds", str(args.rounds), "--batch-tokens", str(args.batch_tokens)]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    found: dict[str, list[float]] = json.loads(out.read_text())
    out.unlink()
    assert found["processes"] == n_processes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2, help="of each launch")
    parser.add_argument("--launches", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--out", type=Path, default=Path("processes"))
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    seconds: dict[int, list[float]] = {1: [], 2: []}
    ratios = []
    for turn in range(args.launches):
        found = {n: launch(n, args) for n in ((1, 2), (2, 1))[turn % 2]}
        np.testing.assert_allclose(found[2]["chosen"], found[1]["chosen"], rtol=1e-5)
        for n in (1, 2):
            seconds[n] += found[n]["seconds"]
        ratios += [one / two for one, two in zip(found[1]["seconds"], found[2]["seconds"], strict=True)]
    data = f"{args.pairs} of {Path(args.data).stem}"
    rows = [
        {
            "model": name_of(args.model),
            "pairs": data,
            "processes": n,
            "seconds": statistics.median(seconds[n]),
            "faster by": 1.0 if n == 1 else statistics.median(ratios),
        }
        for n in (1, 2)
    ]
    text = f"{describe_machine()}; float32, one thread a process. Command: `python benchmarks/processes.py`.\n\n"
    text += format_table(rows)
    print(text)
    if args.write:
        replace_section(DOCS, "processes", text)


if __name__ == "__main__":
    main()
