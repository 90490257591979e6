"""What leaving out a tenth of the training pairs does: those a measure calls risky, against as many drawn at random.

    python benchmarks/filter_study.py demo --out runs/filter-demo
    python benchmarks/filter_study.py tldr --out runs/filter-tldr --model MODEL --data DATA
    python benchmarks/filter_study.py --write                 # docs/results.md, from docs/data/filter-*.csv

Every step is one `dpotool` command. What is finished is passed over, so the same command goes on where it stopped;
after each run docs/data/filter-NAME.csv has what became of every test pair. DATA holds tldr_train.jsonl and
tldr_test.jsonl, of which only short pairs are taken: on a CPU the whole TL;DR study would take days.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from page import format_table, replace_section

from dpotool.stats.bootstrap import bootstrap_means
from dpotool.stats.intervals import Interval

DOCS = Path(__file__).parent.parent / "docs"
RANDOM, ALL, LAMBDA = "random", "none", "none, lambda 0.9"
MEASURES = {"driver_score": "driver score", "ches": "CHES", "ln_ches": "ln-CHES", "edit_similarity": "edit similarity"}
VALUES = ("chosen", "margin", "accuracy")
BETA = 0.1
SHORT = 1100
"""Characters of prompt and longer answer up to which a TL;DR pair is taken."""
SFT_ROWS = 96


@dataclass(frozen=True)
class Study:
    """One model, its pairs, and how long it is trained on what is left of them; all runs take the same steps."""

    name: str
    out: Path
    model: str
    data: str
    rows: tuple[str, ...]
    """Which of them, as options."""
    test: str
    n_dropped: int
    steps: int
    seeds: tuple[int, ...]
    training: tuple[str, ...] = ()
    is_over: bool = False
    """Whether nothing is to be run any more: what was not finished is passed over."""

    @property
    def pairs(self) -> tuple[str, ...]:
        """All the training pairs, as options."""
        return ("--data", self.data, *self.rows)

    def run(self, name: str, *words: str) -> bool:
        """Runs a command unless it was finished before; returns whether it is finished now.

        Raises:
            subprocess.CalledProcessError: the command failed; its last words are on stderr.
        """
        done = self.out / f"{name}.done"
        if done.exists() or self.is_over:
            return done.exists()
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "dpotool", *words], stdout=subprocess.DEVNULL, check=True)
        done.write_text(f"{time.monotonic() - began:.1f} s  dpotool {' '.join(words)}\n", encoding="utf-8")
        return True

    def measure(self) -> dict[str, Path]:
        """Returns the table that each measure stands in, at the model as it is before training."""
        folder = self.out / "start"
        common = (*self.pairs, "--output", str(folder))
        self.run("theory", "theory-gap", "--model", self.model, *common)
        self.run("diagnosis", "diagnose", self.model, "--reference", self.model, "--no-mass", *common)
        tables = {kind: _find(folder / kind, "*.parquet") for kind in ("theory", "diagnosis")}
        return {name: tables["theory" if name == "driver_score" else "diagnosis"] for name in MEASURES}

    def train_without(self, measure: str, table: Path | None, seed: int) -> Path | None:
        """Leaves out the riskiest pairs by the measure's table, at random without one; see `train`."""
        folder = self.out / f"without-{measure}{f'-{seed}' if table is None else ''}"
        source = ("--table", str(table)) if table else ("--seed", str(seed))
        words = ("--by", measure, "--drop-top", str(self.n_dropped), *source, "--output", str(folder))
        if not self.run(folder.name, "filter", self.data, *self.rows, *words):
            return None
        return self.train(measure, seed, "--data", str(_find(folder, "*-kept.jsonl")))

    def train(self, arm: str, seed: int, *words: str) -> Path | None:
        """Trains and scores; returns the score table, or None where the study is over without it."""
        run = self.out / f"{arm}-{seed}"
        fixed = ("--max-steps", str(self.steps), "--eval-steps", "1000", "--beta", str(BETA), *self.training)
        common = ("--model", self.model, "--eval-data", self.test, "--seed", str(seed), "--output", str(run))
        is_trained = self.run(f"train-{run.name}", "train", *words, *common, *fixed)
        is_scored = is_trained and self.run(f"score-{run.name}", "score", str(run))
        return _find(run / "scores", "*.parquet") if is_scored else None

    def run_all(self) -> Iterator[tuple[str, int, Path | None]]:
        """Yields arm, seed and score table: first what is left out, seed after seed, then training on all pairs."""
        tables = self.measure()
        for seed in self.seeds:
            yield RANDOM, seed, self.train_without(RANDOM, None, seed)
            for measure, table in tables.items():
                yield measure, seed, self.train_without(measure, table, seed)
        for seed in self.seeds:
            yield ALL, seed, self.train("all", seed, *self.pairs)
            yield LAMBDA, seed, self.train("lambda", seed, *self.pairs, "--loss", "shift", "--lambda", "0.9")


def _find(folder: Path, pattern: str) -> Path:
    [path] = [each for each in folder.glob(pattern) if "tokens" not in each.name]
    return path


def plan_demo(out: Path) -> Study:
    rows = ("--split", "train", "--limit", "960")
    return Study("demo", out, "builtin:demo", "builtin:demo", rows, "builtin:demo", 96, 27, (42, 1, 2))


def plan_tldr(out: Path, model: str, data: Path) -> Study:
    """Cuts the short pairs in two by posts, trains the first part by SFT, and plans the study on the second."""
    files = {name: out / f"{name}.jsonl" for name in ("sft", "pairs", "test")}
    by_post: dict[str, list[str]] = {}
    for line in _read_short(data / "tldr_train.jsonl"):
        by_post.setdefault(json.loads(line)["prompt"], []).append(line)
    first: list[str] = []
    rest: list[str] = []
    for rows in by_post.values():
        (first if len(first) < SFT_ROWS else rest).extend(rows)
    parts = {"sft": first, "pairs": rest[:120], "test": _read_short(data / "tldr_test.jsonl")[:60]}
    for name, lines in parts.items():
        files[name].write_text("".join(lines), encoding="utf-8")
    start = out / "sft"
    sft = ("--loss", "sft", "--model", model, "--data", str(files["sft"]), "--batch-size", "8", "--output", str(start))
    training = ("--batch-size", "8", "--learning-rate", "1e-5")
    study = Study("tldr", out, str(start), str(files["pairs"]), (), str(files["test"]), 30, 11, (42,), training)
    study.run("sft", "train", *sft)
    return study


def _read_short(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if _count_characters(json.loads(line)) <= SHORT]


def _count_characters(row: dict[str, str]) -> int:
    return len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))


def collect(study: Study) -> None:
    """Runs what is missing; after each run docs/data/filter-NAME.csv has it: a row per test pair, two columns per run.

    The columns are the changes of both answers' log-likelihoods, in nats.
    """
    columns: dict[str, pd.Series] = {}
    for arm, seed, path in study.run_all():
        if path is None:
            continue
        table = pd.read_parquet(path).set_index("pair_id")
        columns.setdefault("prompt_id", table["prompt_id"])
        for side in ("chosen", "rejected"):
            columns[f"{arm}|{seed}|{side}"] = table[f"{side}_displacement"]
        pd.DataFrame(columns).to_csv(DOCS / "data" / f"filter-{study.name}.csv", float_format="%.4f")


def tabulate(path: Path) -> str:
    """Returns a Markdown table: each arm, and its difference from leaving out at random, seed by seed and on average.

    Differences are taken within a pair and a seed and averaged over the seeds; intervals are over pairs, pairs of one
    prompt together.
    """
    table = pd.read_csv(path)
    clusters = table["prompt_id"].to_numpy(dtype=str)
    runs: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name in table.columns[2::2]:
        arm, seed, _ = name.split("|")
        chosen, rejected = (table[f"{arm}|{seed}|{side}"].to_numpy() for side in ("chosen", "rejected"))
        margin = BETA * (chosen - rejected)
        runs.setdefault(arm, {})[seed] = {"chosen": chosen, "margin": margin, "accuracy": 100.0 * (margin > 0)}
    rows = []
    for arm, seeds in runs.items():
        against = {
            key: np.stack([found[key] - runs[RANDOM][seed][key] for seed, found in seeds.items()]) for key in VALUES
        }
        found = bootstrap_means({key: each.mean(axis=0) for key, each in against.items()}, clusters=clusters)
        row = {
            "left out by": MEASURES.get(arm, arm),
            "change of log pi(chosen)": f"{np.mean([each['chosen'] for each in seeds.values()]):.2f}",
            "accuracy, %": f"{np.mean([each['accuracy'] for each in seeds.values()]):.1f}",
        }
        if arm != RANDOM:
            row["chosen against random"] = _write(found["chosen"], 2)
            row["by seed"] = ", ".join(f"{mean:+.2f}" for mean in against["chosen"].mean(axis=1))
            row["reward margin against random"] = _write(found["margin"], 3)
            row["accuracy against random, points"] = _write(found["accuracy"], 1)
        rows.append(row)
    return format_table(rows)


def _write(interval: Interval, digits: int) -> str:
    return f"{interval.value:+.{digits}f} [{interval.ci_low:+.{digits}f}, {interval.ci_high:+.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=("demo", "tldr"))
    parser.add_argument("--out", type=Path, default=Path("runs/filter-study"))
    parser.add_argument("--model", default="")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--finished", action="store_true", help="run nothing, only gather what is finished")
    parser.add_argument("--write", action="store_true", help="only put the tables into docs/results.md")
    told = parser.parse_args()
    if told.study:
        told.out.mkdir(parents=True, exist_ok=True)
        study = plan_demo(told.out) if told.study == "demo" else plan_tldr(told.out, told.model, told.data)
        collect(replace(study, is_over=told.finished))
    if told.write:
        for path in sorted((DOCS / "data").glob("filter-*.csv")):
            replace_section(DOCS / "results.md", path.stem, tabulate(path))


if __name__ == "__main__":
    main()
