"""Times scoring, DPO training steps and a sweep against TRL, lm-evaluation-harness and a plain loop.

    python benchmarks/likelihood.py --model PATH --write     # PATH: a real model; all cells, into docs/performance.md
    python benchmarks/likelihood.py --only scoring-random    # one cell; the random ones need no model
    python benchmarks/likelihood.py --model PATH --missing   # go on where an interrupted run stopped

A cell is a comparison on one model and one set of pairs. Each method works in a process of its own (`worker.py`) and
only when it is its turn, so that slow minutes of a machine hit all alike; ratios are medians over rounds, of neighbours
in time. Before anything is timed, the numbers must agree. In all cells but `own-*` every method has dpotool's choice of
float32 library and huge pages; in `own-*` only dpotool has, as its command line sets them, and rivals run as they come.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from harness import DOCS, RANDOM, Row, append_row, describe_machine, name_of, read_newest_rows
from page import format_table, replace_section
from scoring_methods import DPOTOOL, LM_EVAL, LOOP, SCORERS, TRL
from worker import Answer, Worker
from workloads import FILES, RANDOM_WORDS, Workload, write_random_model, write_random_pairs, write_real_pairs

ROWS = Path(__file__).parent / "likelihood.jsonl"
REAL_DATA = Path(__file__).parents[2] / "shared" / "data"
MAX_LOSS_DIFFERENCE = 1e-5
MIN_SIZES_TRIED = 3
WARM_UP_STEPS = 2
FASTER = "dpotool is faster by"


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison."""

    name: str
    part: str
    """scoring, training or sweep."""
    data: str
    methods: tuple[str, ...]
    n_pairs: int
    rounds: int = 1
    batch_size: int = 2
    """Pairs of a training step."""
    tuning_pairs: int = 16
    """Pairs on which rivals' batch sizes are tried, the largest size too."""


CELLS = (
    Cell("scoring-tldr", "scoring", "TL;DR", tuple(SCORERS), n_pairs=24, rounds=3, tuning_pairs=8),
    Cell("scoring-hh", "scoring", "HH", tuple(SCORERS), n_pairs=32, rounds=3),
    Cell("scoring-random", "scoring", RANDOM_WORDS, tuple(SCORERS), n_pairs=64, rounds=3),
    Cell("own-tldr", "scoring", "TL;DR", (DPOTOOL, TRL, LM_EVAL), n_pairs=16, rounds=2, tuning_pairs=8),
    Cell("training-tldr", "training", "TL;DR", (DPOTOOL, TRL), n_pairs=40),
    Cell("training-hh", "training", "HH", (DPOTOOL, TRL), n_pairs=40),
    Cell("training-random", "training", RANDOM_WORDS, (DPOTOOL, TRL), n_pairs=80, batch_size=4),
    Cell("sweep-random", "sweep", RANDOM_WORDS, (DPOTOOL, TRL), n_pairs=32, batch_size=4),
)
TITLES = {
    "scoring": "same matrix library and allocator for all",
    "own": "matrix library and allocator as dpotool chooses them, rivals as they come",
    "training": "DPO steps, reference computed beforehand, same matrix library and allocator for all",
    "sweep": "five lambdas against five TRL runs, files to checkpoints",
}


@contextmanager
def start_workers(cell: Cell, task: Answer, methods: Sequence[str], args: argparse.Namespace) -> Iterator[list[Worker]]:
    """Starts a process a method and waits until all have loaded; a rival that is not installed is left out."""
    started: list[Worker] = []
    try:
        for method in methods:
            is_equipped = method not in (TRL, LM_EVAL, LOOP) or not cell.name.startswith("own")
            full = {**task, "method": method, "threads": args.threads, "fast_float32": is_equipped}
            started.append(Worker(full, threads=args.threads, huge_pages=is_equipped))
        ready = []
        for worker in started:
            answer = worker.read()
            if "absent" in answer:
                print(f"{cell.name}: {worker.method} is left out: {answer['absent']} is not installed", flush=True)
            else:
                ready.append(worker)
        yield ready
    finally:
        for worker in started:
            worker.close()


def bench_scoring(cell: Cell, workload: Workload, args: argparse.Namespace) -> Iterator[Row]:
    task = {"part": "scoring", "model": workload.model, "data": workload.data}
    n_pairs, rounds = args.pairs or cell.n_pairs, args.rounds or cell.rounds
    with (
        start_workers(cell, task, cell.methods, args) as workers,
        start_workers(cell, {**task, "part": "products"}, ["matrix products"], args) as (products,),
    ):
        sizes, checked = {}, {}
        n_tried = min(n_pairs, cell.tuning_pairs)
        for worker in workers:
            sizes[worker.method], checked[worker.method] = tune(worker, n_tried)
        check_agreement(checked)
        answers: dict[str, list[Answer]] = {worker.method: [] for worker in workers}
        rates = []
        for turn in range(rounds):
            rates.append(products.ask())
            for worker in rotate(workers, turn):
                size = sizes[worker.method]
                answers[worker.method].append(worker.ask(n_pairs=n_pairs, batch_size=size))
    difference = check_agreement({method: np.array(given[-1]["logps"]) for method, given in answers.items()})
    for method, given in answers.items():
        speed = given[0]["operations"] / statistics.median(answer["seconds"] for answer in given)
        yield {
            "method": method,
            "batch": sizes[method] or "by tokens",
            "pairs x rounds": f"{n_pairs} x {rounds}",
            "pairs/s": n_pairs / statistics.median(answer["seconds"] for answer in given),
            FASTER: compare(given, answers[DPOTOOL]),
            "peak MiB": max(answer["peak_mib"] for answer in given),
            "GFLOP/s": speed / 1e9,
            "of square products": speed / statistics.median(rate["square"] for rate in rates),
            "of the model's layers": speed / statistics.median(rate["layers"] for rate in rates),
            "largest difference (nats)": difference[method],
        }


def tune(worker: Worker, n_pairs: int) -> tuple[int, np.ndarray]:
    """Returns the batch size that was fastest on a few pairs, and the values found.

    Sizes double from 1 on, at least three times, as long as the last one tried is the best. dpotool has none to tune.
    """
    tried: dict[int, Answer] = {}
    best = size = 0 if worker.method == DPOTOOL else 1
    while size <= n_pairs and (len(tried) < MIN_SIZES_TRIED or best == size // 2):
        tried[size] = worker.ask(n_pairs=n_pairs, batch_size=size)
        best = min(tried, key=lambda tried_size: tried[tried_size]["seconds"])
        if size == 0:
            break
        size *= 2
    return best, np.array(tried[best]["logps"])


def check_agreement(logps: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns each method's largest difference from dpotool's sums, in nats.

    Raises:
        AssertionError: it is more than float32 rounding.
    """
    expected = logps[DPOTOOL]
    for method, got in logps.items():
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3, err_msg=method)
    return {method: float(np.abs(got - expected).max()) for method, got in logps.items()}


def bench_training(cell: Cell, workload: Workload, args: argparse.Namespace) -> Iterator[Row]:
    n_steps = args.steps or cell.n_pairs // cell.batch_size
    task = {"part": "training", "model": workload.model, "data": workload.data}
    task |= {"batch_size": cell.batch_size, "n_steps": n_steps}
    with start_workers(cell, task, cell.methods, args) as workers:
        answers: dict[str, list[Answer]] = {worker.method: [] for worker in workers}
        for turn in range(n_steps):
            for worker in rotate(workers, turn):
                answers[worker.method].append(worker.ask())
            losses = [given[-1]["loss"] for given in answers.values()]
            if max(losses) - min(losses) > MAX_LOSS_DIFFERENCE:
                raise AssertionError(f"{cell.name}: losses of step {turn + 1} differ: {losses}")
    for method, given in answers.items():
        timed, ours = (list(steps[min(WARM_UP_STEPS, n_steps - 1) :]) for steps in (given, answers[DPOTOOL]))
        differences = [abs(a["loss"] - b["loss"]) for a, b in zip(given, answers[DPOTOOL], strict=True)]
        yield {
            "method": method,
            "pairs a step": cell.batch_size,
            "steps": n_steps,
            "pairs/s": cell.batch_size * len(timed) / sum(answer["seconds"] for answer in timed),
            FASTER: sum(a["seconds"] for a in timed) / sum(a["seconds"] for a in ours),
            "peak MiB": given[-1]["peak_mib"],
            "first loss": f"{given[0]['loss']:.6f}",
            "last loss": f"{given[-1]['loss']:.6f}",
            "largest difference of losses": max(differences),
        }


def bench_sweep(cell: Cell, workload: Workload, args: argparse.Namespace) -> Iterator[Row]:
    n_steps = args.steps or cell.n_pairs // cell.batch_size
    lines = Path(workload.data).read_text(encoding="utf-8").splitlines(keepends=True)
    n_train = n_steps * cell.batch_size
    train, held_out = (Path(workload.data).with_suffix(f".{name}.jsonl") for name in ("train", "test"))
    train.write_text("".join(lines[:n_train]), encoding="utf-8")
    held_out.write_text("".join(lines[n_train : n_train + n_train // 2]), encoding="utf-8")
    task = {"part": "sweep", "model": workload.model, "data": str(train), "held_out": str(held_out)}
    task |= {"batch_size": cell.batch_size, "n_steps": n_steps}
    with start_workers(cell, task, cell.methods, args) as workers:
        answers = {worker.method: worker.ask() for worker in workers}
    for side in ("chosen", "rejected"):
        given = [answer[side] for answer in answers.values()]
        np.testing.assert_allclose(given, given[0], rtol=1e-5, err_msg=f"{cell.name}: log pi({side}) after DPO")
    for method, answer in answers.items():
        yield {
            "method": method,
            "runs": answer["runs"],
            "pairs": f"{n_train} trained on, {n_train // 2} held out",
            "seconds": answer["seconds"],
            FASTER: answer["seconds"] / answers[DPOTOOL]["seconds"],
        }


BENCHES: dict[str, Callable[[Cell, Workload, argparse.Namespace], Iterator[Row]]] = {
    "scoring": bench_scoring,
    "training": bench_training,
    "sweep": bench_sweep,
}


def rotate(workers: Sequence[Worker], turn: int) -> list[Worker]:
    """Another one begins each round."""
    start = turn % len(workers)
    return [*workers[start:], *workers[:start]]


def compare(given: Sequence[Answer], ours: Sequence[Answer]) -> float:
    """Returns the median over rounds of a method's time over dpotool's."""
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(given, ours, strict=True))


def prepare_workload(cell: Cell, args: argparse.Namespace, folder: Path) -> Workload | None:
    """Writes the cell's files; None, with a line that says why, where there is no real model or data."""
    n_pairs = (args.steps or 0) * cell.batch_size or args.pairs or cell.n_pairs
    n_pairs += n_pairs // 2 if cell.part == "sweep" else 0
    data = folder / f"{cell.name}.jsonl"
    if cell.data == RANDOM_WORDS:
        return Workload(write_random_model(folder / RANDOM), write_random_pairs(data, n_pairs))
    source = args.data / FILES[cell.data]
    if args.model is None or not source.exists():
        print(f"{cell.name} is left out: {source if args.model else '--model'} is not there", flush=True)
        return None
    return Workload(args.model, write_real_pairs(data, source, args.model, n_pairs))


def bench_cells(args: argparse.Namespace, cells: Sequence[Cell]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            workload = prepare_workload(cell, args, Path(folder))
            if workload is None:
                continue
            about = {"cell": cell.name, "model": name_of(workload.model), "data": cell.data}
            for row in list(BENCHES[cell.part](cell, workload, args)):  # all of a cell or nothing
                append_row(args.rows, {**about, **row})


def write_tables(args: argparse.Namespace) -> None:
    rows = read_newest_rows(args.rows, ("cell", "method"))
    order = [cell.name for cell in CELLS]
    rows.sort(key=lambda row: order.index(str(row["cell"])))
    for kind, title in TITLES.items():
        own = [
            {column: value for column, value in row.items() if column != "cell"}
            for row in rows
            if str(row["cell"]).startswith(kind)
        ]
        if not own:
            continue
        text = f"{title[0].upper()}{title[1:]}. {describe_setup(args)}\n\n{format_table(own)}"
        print(f"\n{text}")
        if args.write or args.only_write:
            replace_section(DOCS, f"likelihood-{kind}", text)


def describe_setup(args: argparse.Namespace) -> str:
    rivals = []
    for package in ("trl", "lm-eval"):
        try:
            rivals.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            rivals.append(f"no {package}")
    setup = f"{describe_machine()}, {', '.join(rivals)}; float32, {args.threads} threads"
    return f"{setup}. Command: `make bench-likelihood`."


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a real model's folder; without it only the random ones are run")
    parser.add_argument("--data", type=Path, default=REAL_DATA, help=f"folder of {' and '.join(FILES.values())}")
    names = [cell.name for cell in CELLS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, help="cells to run")
    parser.add_argument("--missing", action="store_true", help="leave out cells that have rows already")
    parser.add_argument("--pairs", type=int, help="pairs to score, instead of each cell's own number")
    parser.add_argument("--rounds", type=int, help="rounds of scoring, instead of each cell's own number")
    parser.add_argument("--steps", type=int, help="training steps, instead of each cell's own number")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=Path, default=ROWS, help="file that keeps what was measured")
    parser.add_argument("--write", action="store_true", help=f"put the results into {DOCS.name}")
    parser.add_argument("--only-write", action="store_true", help="measure nothing, write what was measured")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    done = {row["cell"] for row in read_newest_rows(args.rows, ("cell",))} if args.missing else set()
    if not args.only_write:
        bench_cells(args, [cell for cell in CELLS if cell.name in args.only and cell.name not in done])
    write_tables(args)


if __name__ == "__main__":
    main()
