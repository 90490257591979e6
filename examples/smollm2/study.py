r"""The study of docs/results.md: a real model on TL;DR pairs, SFT first, then every remedy, seeds, and controls.

    python examples/smollm2/study.py MODEL DATA --out runs/study --jobs 4
    python examples/smollm2/study.py --out runs/study --collect docs/data/tldr-study.csv
    python examples/smollm2/study.py --tabulate docs/data/tldr-study.csv

MODEL is a folder as get_model.py writes it; DATA holds tldr_train.jsonl and tldr_test.jsonl. Every step is one
`dpotool` command, written to `commands.log`. What is finished is passed over, so the same command goes on where it
stopped. `--jobs` commands run at a time on one device, the most valuable ones first, and `--minutes` begins no command
after that long. A training takes about 15 GB of a GPU's memory: four at a time fit on one of 80 GB, and ten did not.
With `--bf16` six fit, and the study on the H100 took eight minutes. On two CPU cores the whole is a matter of days:
`--pairs 150 --steps 19` makes it hours. The study of short pairs with two seeds takes three hours on one core:

    python examples/smollm2/study.py MODEL DATA --out runs/short --short 1200 --sft-rows 200 --pairs 200 \
        --early 6,12,18 --scales 0.7,0.4 --blends 0.75 \
        --only sft,dpo-seed42,shift-0.75-seed42,shift-0.5-seed42,dpo-seed1,shift-0.75-seed1,shift-0.5-seed1

The training posts are cut in two, the first part for SFT and the rest for preferences, so that the start has not
learned the very answers that are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SFT_ROWS, SFT_ROWS_SHORT = 700, 64
"""Rows of the first part, for SFT, of all pairs and of short ones."""
LAMBDAS = (1.0, 0.75, 0.5, 0.9, 0.95)
SEEDS = (42, 1, 2)
OTHER_LOSSES = ("dpop", "ipo", "rpo", "cal-dpo", "simpo", "apo-zero", "nca", "orpo", "cpo", "r-dpo", "sppo")
EARLY = (30, 60, 90)
"""Steps of DPO's run at which a checkpoint stays, where it takes a whole pass over all pairs: DPO stopped early."""
SCALES = (0.8, 0.6, 0.4, 0.2)
"""DPO scaled back: start + scale * (DPO - start)."""
BLENDS = (0.95, 0.9, 0.75, 0.6)
"""Lambdas on the line through the weights trained with lambda 1 and 0.5."""


@dataclass(frozen=True)
class Job:
    """One `dpotool` command, with the file that exists when it is done."""

    name: str
    words: tuple[str, ...]
    done: Path


@dataclass(frozen=True)
class Study:
    """Where everything lies, and how long there is."""

    model: str
    data: Path
    out: Path
    pairs: int | None
    steps: int | None
    jobs: int
    deadline: float
    length: str
    options: tuple[str, ...]
    short: int | None = None
    """Characters of prompt and longer answer up to which pairs are taken; all pairs without it."""
    n_test: int | None = None
    n_sft: int = SFT_ROWS
    early: tuple[int, ...] = ()
    rate: str = "1e-5"
    only: frozenset[str] = frozenset()
    """Names of the only trainings to run; without any, all."""
    precision: tuple[str, ...] = ()
    """What trainings are told of it; scores are of the weights as they were saved, in float32."""

    @property
    def sft_batch(self) -> int:
        return 16 if self.short is None else 8

    @property
    def start(self) -> Path:
        return self.out / "sft"

    @property
    def table(self) -> Path:
        """Where `score` leaves a run's test pairs."""
        return Path("scores") / "tldr_test-test.parquet"

    def run_all(self, jobs: Iterable[Job]) -> None:
        """Runs the jobs that are not done, several at a time, in their order; a failure is noted and passed over."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self.run, jobs))

    def run(self, job: Job) -> None:
        """Runs one job, unless it is done, not asked for, or there is no time left."""
        is_wanted = not self.only or job.name in self.only or job.name.startswith(("score-", "scaled-", "blend-"))
        if not is_wanted or job.done.exists() or time.monotonic() > self.deadline:
            return
        began = time.monotonic()
        with (self.out / f"{job.name}.log").open("w") as log:
            was_begun = job.words[0] == "train" and (job.done.parent / "run.yaml").exists()
            command = [sys.executable, "-m", "dpotool", *job.words, *(["--resume"] if was_begun else [])]
            limit = max(10.0, self.deadline - began + 20)
            try:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = -1
        line = f"{time.monotonic() - began:7.1f} s  exit {code}  dpotool {' '.join(job.words)}"
        with (self.out / "commands.log").open("a") as commands:
            commands.write(line + "\n")
        print(line, flush=True)


def cut_data(study: Study) -> None:
    """Writes tldr_sft.jsonl and tldr_pairs.jsonl, whole posts in the order of the file, and tldr_test.jsonl."""
    lines = _read_pairs(study, "tldr_train.jsonl")
    by_post: dict[str, list[str]] = {}
    for line in lines:
        by_post.setdefault(json.loads(line)["prompt"], []).append(line)
    first: list[str] = []
    rest: list[str] = []
    for rows in by_post.values():
        (first if len(first) < study.n_sft else rest).extend(rows)
    study.out.mkdir(parents=True, exist_ok=True)
    (study.out / "tldr_sft.jsonl").write_text("".join(first), encoding="utf-8")
    (study.out / "tldr_pairs.jsonl").write_text("".join(rest[: study.pairs]), encoding="utf-8")
    test = _read_pairs(study, "tldr_test.jsonl")[: study.n_test]
    (study.out / "tldr_test.jsonl").write_text("".join(test), encoding="utf-8")


def _read_pairs(study: Study, name: str) -> list[str]:
    lines = (study.data / name).read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if study.short is None or _count_characters(json.loads(line)) <= study.short]


def _count_characters(row: dict[str, str]) -> int:
    return len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))


def plan_sft(study: Study) -> Job:
    steps = ("--max-steps", str(study.steps)) if study.steps and study.short is None else ()
    words = (
        *("train", "--loss", "sft", "--model", study.model, "--data", str(study.out / "tldr_sft.jsonl")),
        *("--max-length", study.length, "--batch-size", str(study.sft_batch), "--save-steps", "1000"),
        *("--output", str(study.start)),
        *(*steps, *study.precision, *study.options),
    )
    return Job("sft", words, study.start / "model.safetensors")


def plan_training(study: Study, name: str, *words: str, seed: int = SEEDS[0]) -> Job:
    """One preference training from the SFT model; --save-steps keeps it from writing checkpoints along the way."""
    steps = ("--max-steps", str(study.steps)) if study.steps else ()
    return Job(
        name,
        (
            *("train", *words, "--model", str(study.start), "--data", str(study.out / "tldr_pairs.jsonl")),
            *("--eval-data", str(study.out / "tldr_test.jsonl"), "--max-length", study.length),
            *("--batch-size", "8", "--learning-rate", study.rate, "--eval-steps", "1000", "--save-steps", "1000"),
            *("--seed", str(seed), "--output", str(study.out / name), *steps, *study.precision, *study.options),
        ),
        study.out / name / "model.safetensors",
    )


def plan_shift(study: Study, lambda_: float, seed: int) -> Job:
    if lambda_ == 1:
        early = ("--save-at", ",".join(map(str, study.early))) if seed == SEEDS[0] and study.early else ()
        return plan_training(study, f"dpo-seed{seed}", "--loss", "dpo", *early, seed=seed)
    words = ("--loss", "shift", "--lambda", f"{lambda_:g}")
    return plan_training(study, f"shift-{lambda_:g}-seed{seed}", *words, seed=seed)


def plan_theory(study: Study) -> Job:
    """Gradient products of the training pairs at the SFT model, with their driver scores."""
    words = (
        *("theory-gap", "--model", str(study.start), "--data", str(study.out / "tldr_pairs.jsonl"), "--split", "train"),
        *("--max-length", study.length, "--output", str(study.out / "theory"), *study.options),
    )
    return Job("theory", words, study.out / "theory" / "theory" / "tldr_pairs-all.parquet")


def plan_line(
    study: Study, one: str, other: str, option: str, points: Mapping[str, float], folder: str = ""
) -> Iterator[Job]:
    """Saves and scores models between two trained ones: name -> the value of `--weight` or `--at`.

    Into a folder of the study; in `controls` of DPO's run, other commands find it scaled back.
    """
    ends = [study.out / each / "model.safetensors" for each in (one, other)]
    for name, value in points.items() if all(each.exists() for each in ends) else ():
        target = study.out / folder / name
        if target.exists() and not (target / study.table).exists():
            shutil.rmtree(target)  # an interrupted one
        words = ("blend", str(study.out / one), str(study.out / other), option, f"{value:g}", "--write", str(target))
        yield Job(f"{name}-{other}", (*words, *study.options), target / study.table)


def plan_scores(study: Study, n_parts: int) -> Iterator[Job]:
    """Scores every model on the test pairs, several models a command."""
    elsewhere = (
        "--reference",
        str(study.start),
        "--data",
        str(study.out / "tldr_test.jsonl"),
        "--max-length",
        study.length,
    )
    known = sorted(path.parent for path in study.out.glob("*/model.safetensors") if path.parent != study.start)
    early = [study.out / f"dpo-seed{SEEDS[0]}" / f"checkpoint-{step}" for step in study.early]
    known += [folder for folder in early if (folder / "model.safetensors").exists()]
    todo = [folder for folder in known if not (folder / study.table).exists()]
    for number in range(n_parts):
        for folder in todo[number::n_parts]:
            is_run = (folder / "run.yaml").exists()
            words = ("score", str(folder), *study.options) if is_run else (
                "score", str(folder), *elsewhere, "--output", str(folder), *study.options
            )  # fmt: skip
            yield Job(f"score-{folder.parent.name}-{folder.name}", words, folder / study.table)


def plan_diagnoses(study: Study) -> Iterator[Job]:
    for name in (f"dpo-seed{SEEDS[0]}", f"shift-0.75-seed{SEEDS[0]}"):
        done = study.out / name / "diagnosis" / "tldr_test-test.parquet"
        yield Job(f"diagnose-{name}", ("diagnose", str(study.out / name), *study.options), done)


COLUMNS = ("pair_id", "prompt_id", "chosen_displacement", "rejected_displacement")


def collect(out: Path, target: Path) -> None:
    """Writes the test pairs of every scored model into one CSV file: run, pair, prompt and the two changes in nats."""
    import pandas as pd

    frames = []
    places = ("*", "*/checkpoint-*", f"dpo-seed{SEEDS[0]}/controls/*")
    for path in sorted(path for place in places for path in out.glob(f"{place}/scores/*.parquet")):
        if "tokens" not in path.name:
            table = pd.read_parquet(path)
            folder = path.parent.parent
            run = folder.name if folder.parent.name == "controls" else folder.relative_to(out).as_posix()
            frames.append(table.loc[table["status"] == "ok", list(COLUMNS)].assign(run=run))
    pd.concat(frames).to_csv(target, index=False, float_format="%.5f")


def tabulate(source: Path) -> str:
    """Returns what the CSV file says as a table in Markdown, with paired intervals against DPO scaled back.

    The control of a run is DPO scaled back to the run's own mean margin: between the two scales around it, each pair's
    values are taken on the line between its values there. Below the table are the lambdas that have several seeds, each
    less DPO of the same seed, and the blends, each less the run of its lambda.
    """
    import numpy as np
    import pandas as pd

    from dpotool.compare.seeds import combine_seeds
    from dpotool.stats.bootstrap import bootstrap_means, bootstrap_shares

    table = pd.read_csv(source)
    runs = {name: rows.set_index("pair_id") for name, rows in table.groupby("run")}
    dpo = f"dpo-seed{SEEDS[0]}"
    scaled = {float(name.removeprefix("scaled-")): rows for name, rows in runs.items() if name.startswith("scaled-")}
    curve = [*sorted(scaled.items()), (1.0, runs[dpo])]

    def margins(rows: pd.DataFrame) -> pd.Series:
        return rows["chosen_displacement"] - rows["rejected_displacement"]

    def subtract(rows: pd.DataFrame, other: pd.DataFrame) -> dict[str, np.ndarray]:
        rights = [(margins(each) > 0).astype(float) for each in (rows, other)]
        return {
            "chosen": (rows["chosen_displacement"] - other["chosen_displacement"]).to_numpy(),
            "margin": (margins(rows) - margins(other)).to_numpy(),
            "accuracy": (rights[0] - rights[1]).to_numpy(),
        }

    def control(rows: pd.DataFrame) -> pd.DataFrame | None:
        means = [margins(each).mean() for _, each in curve]
        wanted = margins(rows).mean()
        if not means[0] <= wanted <= means[-1]:
            return None
        high = int(np.searchsorted(means, wanted))
        low = max(0, high - 1)
        t = 0.0 if high == low else (wanted - means[low]) / (means[high] - means[low])
        one, other = (curve[place][1][list(COLUMNS[2:])] for place in (low, high))
        return (1 - t) * one + t * other

    lines = [
        "| run | change of log pi(chosen), nats | chosen displaced, % | margin of log-ratios, nats | accuracy, % | "
        "chosen against DPO scaled back to the same margin, nats | accuracy against it, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in sorted(runs.items(), key=lambda item: item[1]["chosen_displacement"].mean()):
        clusters = rows["prompt_id"].to_numpy(dtype=str)
        changes = {"chosen": rows["chosen_displacement"].to_numpy(), "margin": margins(rows).to_numpy()}
        shares = {"displaced": rows["chosen_displacement"] < 0, "accuracy": margins(rows) > 0}
        found = control(rows) if not name.startswith(("scaled", dpo)) or "checkpoint" in name else None
        if found is not None:
            less = subtract(rows, found)
            changes |= {"against": less["chosen"], "points": less["accuracy"]}
        means = bootstrap_means(changes, clusters=clusters)
        rates = bootstrap_shares({key: values.to_numpy() for key, values in shares.items()}, clusters=clusters)
        cells = [name, _write(means["chosen"]), _write(rates["displaced"], 100, 1), _write(means["margin"])]
        cells += [_write(rates["accuracy"], 100, 1)]
        cells += [_write(means["against"]), _write(means["points"], 100, 1)] if found is not None else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    for lambda_ in sorted(LAMBDAS, reverse=True):
        pairs = {seed: (runs.get(f"shift-{lambda_:g}-seed{seed}"), runs.get(f"dpo-seed{seed}")) for seed in SEEDS}
        by_seed = [subtract(ours, theirs) for ours, theirs in pairs.values() if ours is not None and theirs is not None]
        if len(by_seed) > 1:
            clusters = runs[dpo]["prompt_id"].to_numpy(dtype=str)
            pooled = {key: combine_seeds([each[key] for each in by_seed], clusters).difference for key in by_seed[0]}
            what = f"shift-{lambda_:g} less DPO of the same seed, {len(by_seed)} seeds, over pairs and training"
            lines.append(_tell(what, pooled))
    for name, rows in runs.items():
        trained = runs.get(f"shift-{name.removeprefix('blend-')}-seed{SEEDS[0]}") if name.startswith("blend-") else None
        if trained is not None:
            clusters = rows["prompt_id"].to_numpy(dtype=str)
            lines.append(
                _tell(f"{name} less the trained run", bootstrap_means(subtract(rows, trained), clusters=clusters))
            )
    return "\n".join(lines)


def _tell(what: str, found: Mapping[str, Any]) -> str:
    told = f"chosen {_write(found['chosen'])} and margin {_write(found['margin'])} nats"
    return f"\n{what}: {told}, accuracy {_write(found['accuracy'], 100, 1)} points."


def _write(interval: Any, scale: float = 1.0, digits: int = 2) -> str:
    ends = (interval.value, interval.ci_low, interval.ci_high)
    value, low, high = (f"{scale * end:.{digits}f}" for end in ends)
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("data", type=Path, nargs="?", default=Path())
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--jobs", type=int, default=1, help="commands at a time on one device")
    parser.add_argument("--pairs", type=int, help="preference pairs to train on; all of the second part without it")
    parser.add_argument("--steps", type=int, help="optimiser steps of each run; one pass without it")
    parser.add_argument("--short", type=int, metavar="CHARACTERS", help="take only pairs up to this long")
    parser.add_argument("--test", type=int, help="test pairs to score; all without it")
    parser.add_argument("--sft-rows", type=int, help=f"rows for SFT; {SFT_ROWS}, or {SFT_ROWS_SHORT} of short pairs")
    parser.add_argument("--early", help="steps at which DPO's run leaves a checkpoint, e.g. 6,12,18")
    parser.add_argument("--learning-rate", default="1e-5", help="of the preference trainings")
    parser.add_argument("--only", default="", help="run only these, e.g. sft,dpo-seed42,shift-0.5-seed42")
    parser.add_argument("--scales", default=",".join(map(str, SCALES)), help="DPO scaled back to these")
    parser.add_argument("--blends", default=",".join(map(str, BLENDS)), help="lambdas to blend at")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no training after this long")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-tokens", default="auto")
    parser.add_argument("--max-length", default="1024")
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    parser.add_argument("--collect", type=Path, metavar="CSV", help="only gather the scores under --out into this file")
    parser.add_argument("--tabulate", type=Path, metavar="CSV", help="only print the table that such a file makes")
    told = parser.parse_args()
    if told.collect:
        collect(told.out, told.collect)
        return
    if told.tabulate:
        print(tabulate(told.tabulate))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    options = ("--device", told.device, "--batch-tokens", told.batch_tokens)
    end = time.monotonic() + 60 * told.minutes
    only = frozenset(filter(None, told.only.split(",")))
    n_sft = told.sft_rows or (SFT_ROWS if told.short is None else SFT_ROWS_SHORT)
    is_whole = told.pairs is None and told.steps is None and told.short is None
    early = tuple(map(int, told.early.split(","))) if told.early else EARLY if is_whole else ()
    study = Study(
        told.model, told.data, told.out, told.pairs, told.steps, told.jobs, end, told.max_length, options,
        told.short, told.test, n_sft, early, told.learning_rate, only, ("--bf16",) if told.bf16 else (),
    )  # fmt: skip
    cut_data(study)
    study.run(plan_sft(study))
    shifts = [plan_shift(study, lambda_, seed) for seed in SEEDS for lambda_ in LAMBDAS]
    losses = [plan_training(study, f"{loss}-seed{SEEDS[0]}", "--loss", loss) for loss in OTHER_LOSSES]
    study.run_all([*shifts[:8], *losses, *shifts[8:], plan_theory(study)])
    dpo, half = f"dpo-seed{SEEDS[0]}", f"shift-0.5-seed{SEEDS[0]}"
    scales, blends = ([float(each) for each in text.split(",") if each] for text in (told.scales, told.blends))
    study.run_all(
        [
            *(
                job
                for each in (f"dpo-seed{seed}" for seed in SEEDS)
                for job in plan_line(
                    study, "sft", each, "--weight", {f"scaled-{scale:g}": scale for scale in scales}, f"{each}/controls"
                )
            ),
            *plan_line(study, dpo, half, "--at", {f"blend-{lambda_:g}": lambda_ for lambda_ in blends}),
        ]
    )
    late = replace(study, deadline=end + 60)
    late.run_all([*plan_diagnoses(late), *plan_scores(late, told.jobs)])


if __name__ == "__main__":
    main()
