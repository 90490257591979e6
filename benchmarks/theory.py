"""Times gradient products against the ways they could be had without dpotool, and against a plain training step.

    python benchmarks/theory.py                                              # a random Llama of 17M parameters
    python benchmarks/theory.py --model random-17M --model PATH --write      # and a checkpoint; into the page

Everything runs in one process, the methods taking turns, after a check that they agree; the peak of memory above the
loaded model is taken in a process of its own per method. Random tokens, half of each row prompt. All methods share
dpotool's choice of float32 library (`models.precision`), which is faster here; --library mkl keeps torch's own.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from gradient_methods import METHODS
from harness import (
    DOCS,
    RANDOM,
    PeakMemory,
    Row,
    append_row,
    describe_machine,
    load_model,
    name_of,
    read_newest_rows,
)
from page import format_table, replace_section
from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.models.precision import use_fast_float32_on_cpu

ENGINE, STEP = "dpotool", "training step (c)"
ROWS = Path(__file__).parent / "theory.jsonl"


def draw_pairs(n_pairs: int, n_tokens: int, vocab: int) -> list[TokenizedPair]:
    draw = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, vocab) for _ in range(n))

    half = n_tokens // 2
    return [TokenizedPair(place, ids(half), ids(n_tokens - half), ids(n_tokens - half)) for place in range(n_pairs)]


def count_pairs(args: argparse.Namespace, n_tokens: int) -> int:
    """Returns how many pairs of rows of that length fill a batch."""
    return max(2, args.batch_tokens // (2 * n_tokens))


def check_agreement(model: nn.Module, pairs: Sequence[TokenizedPair], methods: Sequence[str]) -> None:
    """Raises AssertionError if two methods' products differ by more than float32 rounding, summed as each sums it."""
    expected = METHODS[ENGINE](model, pairs)
    for method in methods:
        got = METHODS[method](model, pairs)
        if got is not None:
            # Concatenated float32 gradients are summed by `dot`, which loses digits: 0.4 % at 16M, 5 % at 134M.
            tolerance = 0.1 if method.startswith("concatenated") else 1e-3
            scale = np.sqrt(expected[:, 1:2] * expected[:, 2:3])
            np.testing.assert_array_less(np.abs(got - expected) / scale, tolerance, err_msg=method)


def time_methods(
    model: nn.Module, pairs: Sequence[TokenizedPair], methods: Sequence[str], rounds: int
) -> dict[str, float]:
    """Returns the median seconds of each method over rounds in which all take turns.

    Each runs twice in a row and is timed the second time, as in a loop of its own: the first run pays for memory that
    the method before it gave back.
    """
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method in methods:
            METHODS[method](model, pairs)
            start = time.perf_counter()
            METHODS[method](model, pairs)
            seconds[method].append(time.perf_counter() - start)
    return {method: statistics.median(values) for method, values in seconds.items()}


def measure_peaks(args: argparse.Namespace, model: str, method: str, n_tokens: int) -> tuple[float, float]:
    """Returns two peaks above the loaded model, in MiB, from a process that does nothing else.

    The first is of resident memory; the second of what torch has given out to tensors, without the libraries' own
    buffers and what the allocator does not give back, which weigh more the smaller a model is.
    """
    command = [
        sys.executable,
        __file__,
        "--model",
        model,
        "--batch-tokens",
        str(args.batch_tokens),
        "--threads",
        str(args.threads),
    ]
    command += ["--peak-of", method, "--tokens", str(n_tokens), "--library", args.library]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resident, tensors = map(float, output.split()[-2:])
    return resident, tensors


def print_peaks(model: nn.Module, args: argparse.Namespace) -> None:
    vocab = model.config.vocab_size
    METHODS[args.peak_of](model, draw_pairs(1, 8, vocab))  # libraries loaded, threads started, engine prepared
    memory = PeakMemory()
    memory.restart()
    n_pairs = count_pairs(args, args.tokens[0])
    pairs = draw_pairs(n_pairs, args.tokens[0], vocab)
    METHODS[args.peak_of](model, pairs)
    resident = memory.read_mib()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        METHODS[args.peak_of](model, pairs)
    print(resident, _find_tensor_peak(profiler) / 2**20)


def _find_tensor_peak(profiler: torch.profiler.profile) -> int:
    """Returns the most bytes of tensors alive at a time among those that were made while the profiler looked on."""
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes), default=0)


def bench_model(name: str, args: argparse.Namespace) -> None:
    model = load_model(name)
    for n_tokens in args.tokens:
        methods = [method for method in METHODS if method in args.methods]
        n_pairs = count_pairs(args, n_tokens)
        pairs = draw_pairs(n_pairs, n_tokens, model.config.vocab_size)
        check_agreement(model, pairs, methods)
        seconds = time_methods(model, pairs, methods, args.rounds)
        for method in methods:
            row: Row = {"model": name_of(name), "T": n_tokens, "method": method}
            row["pairs/s"] = n_pairs / seconds[method]
            row["time / training step"] = seconds[method] / seconds[STEP]
            row["time / dpotool"] = seconds[method] / seconds[ENGINE]
            if n_tokens in args.peak:
                row["peak MiB"], row["of tensors"] = measure_peaks(args, name, method, n_tokens)
            append_row(ROWS, row)


def read_rows() -> list[Row]:
    """Returns the newest row of each model, length and method that this machine has measured, in order."""
    order = list(METHODS)
    rows = read_newest_rows(ROWS, ("model", "T", "method"))
    return sorted(rows, key=lambda row: (row["model"], row["T"], order.index(str(row["method"]))))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help=f"checkpoint folder, or {RANDOM} (default); may be repeated")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128, 256, 512], help="tokens of a row (T)")
    parser.add_argument(
        "--batch-tokens", type=int, default=1024, help="tokens of a batch, two rows a pair, at least 2 pairs"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--library", default="onednn", choices=["onednn", "mkl"], help="float32 products of all methods"
    )
    parser.add_argument("--peak", type=int, nargs="*", default=[256], help="row lengths to measure memory for, too")
    parser.add_argument("--only-write", action="store_true", help="measure nothing, write what was measured")
    parser.add_argument("--write", action="store_true", help=f"put the results into {DOCS.name}")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.library == "onednn":
        use_fast_float32_on_cpu()
    models = [] if args.only_write else args.model or [RANDOM]
    if args.peak_of:
        print_peaks(load_model(models[0]), args)
        return
    for name in models:
        bench_model(name, args)
    rows = read_rows()
    about = (
        f"{describe_machine()}; {args.batch_tokens} tokens a batch, half of each row prompt, float32 ({args.library}), "
        f"{args.threads} threads, medians. Command: `make bench-theory`."
    )
    table = format_table(rows)
    print(f"\n{about}\n\n{table}")
    if args.write or args.only_write:
        replace_section(DOCS, "theory", f"{about}\n\n{table}")


if __name__ == "__main__":
    main()
