"""`sweep --blend` against `sweep`: how long each takes, and how far the blends are from the runs they stand in for.

    python benchmarks/blend.py --seeds 42,43,44 --output /tmp/blend

For every seed both commands run on the built-in model, `sweep` first, in folders of their own and without controls, so
that the times are those of the trainings and scorings alone; the built-in model and its reference values are made
before. It prints a table in Markdown: the two times and, for each lambda between the ends, blend minus trained run over
the same test pairs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dpotool.compare.blends import measure_deviation
from dpotool.compare.controls import UNITS
from dpotool.compare.runs_table import find_scores
from dpotool.compare.scored_run import ScoredRun
from dpotool.runs.folder import RunFolder
from dpotool.stats.intervals import format_interval
from dpotool.sweep.config import SweepConfig
from dpotool.sweep.run import sweep
from dpotool.training.demo import ensure_demo_model

LAMBDAS = "0.5,0.75,0.9,0.95,1.0"


def run_timed(folder: Path, seed: int, *, blend: bool) -> float:
    """Returns the seconds a sweep takes; a finished one takes none."""
    began = time.monotonic()
    sweep(SweepConfig(lambdas=LAMBDAS, seed=seed, blend=blend, controls=False, output=str(folder)))
    return time.monotonic() - began


def open_scores(folder: Path) -> ScoredRun:
    return ScoredRun.open(find_scores(RunFolder(folder))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="42,43,44", help="comma-separated")
    parser.add_argument("--output", type=Path, default=Path("runs/blend-benchmark"))
    told = parser.parse_args()
    ensure_demo_model()
    columns = ["seed", "lambda", "chosen, nats", "margin, nats", "accuracy, points", "sweep, s", "--blend, s", "ratio"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for seed in map(int, told.seeds.split(",")):
        folders = {name: told.output / f"{name}-{seed}" for name in ("trained", "blended")}
        seconds = [run_timed(folder, seed, blend=name == "blended") for name, folder in folders.items()]
        times = [f"{each:.0f}" for each in seconds] + [f"{seconds[1] / seconds[0]:.2f}"]
        for lambda_ in ("0.95", "0.9", "0.75"):
            pair = (
                open_scores(folders["blended"] / f"blend-{lambda_}"),
                open_scores(folders["trained"] / f"shift-{lambda_}"),
            )
            found = measure_deviation(*pair)
            cells = [format_interval(each, UNITS[name][1], UNITS[name][0]) for name, each in found.items()]
            print(f"| {' | '.join([str(seed), lambda_, *cells, *times])} |", flush=True)
            times = ["", "", ""]


if __name__ == "__main__":
    main()
