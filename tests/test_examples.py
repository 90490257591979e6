"""The examples run: as a user starts them, but on a tiny model and for a few steps."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from shell_scripts import call_dpotool, run_script
from tiny_models import save_tiny_model, write_pairs

from dpotool.cli.config_file import read_config
from dpotool.cli.verbs import add_verb
from dpotool.data.sources import load_preferences
from dpotool.losses.scores import validate_scores
from dpotool.training.arguments import count_steps
from dpotool.training.config import TrainConfig, check_config, fill_in
from dpotool.training.objective import build_objective

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder but for a tiny model and a few pairs."""
    save_tiny_model(tmp_path / "tiny")
    write_pairs(tmp_path / "pairs.jsonl", 24)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Any:
    """Starts an example there and returns what it printed."""

    def run(name: str, *words: str) -> str:
        outcome = run_script([str(EXAMPLES / name), *words], folder)
        assert outcome.code == 0, outcome.err
        return outcome.out

    return run


TRAINING = ("--model", "tiny", "--data", "pairs.jsonl", "--test-fraction", "0.25", "--max-steps", "2")


def test_01_scores_two_runs_side_by_side(start: Any, folder: Path) -> None:
    out = start("01_train_and_score.sh", *TRAINING)
    assert re.search(r"^mean over pairs .*", out, re.MULTILINE)
    assert re.search(r"^dpo\b", out, re.MULTILINE) and re.search(r"^shift\b", out, re.MULTILINE)
    runs = folder / "runs" / "example-01"
    assert (runs / "plots" / "displacement.png").stat().st_size > 5000
    assert all((runs / run / "scores" / "pairs-test.parquet").is_file() for run in ("dpo", "shift"))


def test_02_tables_the_whole_grid(start: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpotool.cli.sweep.conclude", lambda *_: {})  # `plot all` draws the same pictures
    start("02_lambda_sweep.sh", *TRAINING)
    runs = folder / "runs" / "example-02"
    assert len(pd.read_csv(runs / "runs.csv")) == 5
    assert (runs / "plots" / "tradeoff.png").is_file()


def test_03_lists_pairs_by_their_band(start: Any, folder: Path) -> None:
    out = start("03_theory_gap.sh", "--model", "tiny", "--data", "pairs.jsonl", "--limit", "5")
    frame = pd.read_parquet(folder / "runs" / "example-03" / "theory" / "pairs-all-limit-5.parquet")
    assert f"{(frame['band_high'] < 1).sum()} of 5 pairs have their band below 1" in out


def test_04_trains_on_the_file_beside_it(start: Any, folder: Path) -> None:
    start("04_own_data.sh", "--model", "tiny", "--max-steps", "2")
    scores = folder / "runs" / "example-04" / "scores"
    assert len(pd.read_csv(scores / "support-test.csv")) == 6
    assert (scores / "support-test.tokens.csv").is_file()


def test_05_compares_two_runs_pair_by_pair(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["05_python_api.py", *TRAINING])
    _import("05_python_api.py").main()
    out = capsys.readouterr().out
    differences = dict(line.split(",", 1) for line in out.splitlines() if " minus " in line)
    assert list(differences) == ["chosen_logps", "reward_margins"]
    dpo, shift = (
        pd.read_parquet(folder / "runs" / "example-05" / run / "scores" / "pairs-test.parquet")
        for run in ("dpo", "shift")
    )
    difference = (shift["reward_margins"] - dpo["reward_margins"]).mean()
    assert f"{difference:+.3f} nats" in differences["reward_margins"]


def test_06_follows_a_forecast_to_its_outcome(start: Any, folder: Path) -> None:
    out = start("06_per_pair_lambda.sh", *TRAINING)
    runs = folder / "runs" / "example-06"
    assert out.count("Recommended lambda: ") + out.count("No lambda can be recommended.") == 1
    assert len(pd.read_parquet(runs / "start" / "theory" / "pairs-train.parquet")) == 18
    for name in ("dpo", "shift-0.75", "adaptive-sign", "adaptive-band"):
        assert (runs / name / "scores" / "pairs-test.parquet").is_file()
    assert (runs / "dpo" / "predictions" / "pairs-test-at-middle.parquet").is_file()


def test_the_small_file_suits_every_loss() -> None:
    data = load_preferences(str(EXAMPLES / "data" / "support.jsonl"))
    assert len(data.pairs) == 24
    for score_offset in ("log", "raw", "ratio"):
        validate_scores(data.pairs, {"score_offset": score_offset})


def test_the_papers_recipe_is_the_papers() -> None:
    """Batch 128 as 4 pairs x 32 micro-batches; 61,135 pairs of UltraFeedback then make 478 steps an epoch."""
    given = read_config(EXAMPLES / "paper_recipe.yaml", TrainConfig)
    check_config(TrainConfig(**given))
    config = fill_in(TrainConfig(**given))
    objective = build_objective(config)
    assert (objective.loss.name, objective.beta, objective.shift_at(0, 478)) == ("shift", 0.01, 0.95)
    assert config.batch_size is not None and config.batch_size * config.gradient_accumulation == 128
    assert (config.learning_rate, config.epochs, config.seed) == (5e-7, 1, 42)
    assert (config.scheduler, config.warmup_ratio, config.optimizer) == ("cosine", 0.1, "paged_adamw_32bit")
    assert config.max_length == 2048 and config.bf16
    assert count_steps(config, 61_135) == 478


def test_the_command_line_reads_the_recipe() -> None:
    import typer
    from typer.testing import CliRunner

    app = typer.Typer()
    app.callback()(lambda: None)
    received: list[TrainConfig] = []
    add_verb(app, "train", TrainConfig)(lambda config, _console: received.append(config))
    result = CliRunner().invoke(
        app, ["train", "--config", str(EXAMPLES / "paper_recipe.yaml"), "--lambda", "0.75"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    [config] = received
    given = read_config(EXAMPLES / "paper_recipe.yaml", TrainConfig) | {"lambda_": 0.75}
    assert {field.name: getattr(config, field.name) for field in fields(config) if field.name in given} == given


def _import(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rated_summaries_become_pairs() -> None:
    """Ratings 6, 6, 4 leave two pairs: each of the sixes over the four; equal ratings say nothing."""
    make_pairs = _import("smollm2/make_pairs.py").make_pairs
    rows = list(make_pairs("Hello.", [" a", " b", " c", " a"], [6, 6, 4, 6], random.Random(0)))
    assert {(row["chosen"], row["rejected"]) for row in rows} == {(" a", " c"), (" b", " c")}
    assert rows[0]["prompt"] == "Summarize this post in one or two sentences.\n\nHello.\n\nTL;DR:"
    assert (rows[0]["score_chosen"], rows[0]["score_rejected"]) == (6.0, 4.0)
    many = list(make_pairs("Hello.", [f" {n}" for n in range(9)], list(range(9)), random.Random(0)))
    assert len(many) == 3
    assert json.loads(json.dumps(many)) == many


def test_the_study_trains_blends_scores_and_tabulates(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of it on a tiny model: every command is called in this process. The same command then finds all done."""
    calls: list[str] = []

    def call(words: list[str], stdout: Any, **_: Any) -> Any:
        outcome = call_dpotool(words[words.index("dpotool") + 1 :])
        stdout.write(outcome.out + outcome.err)
        calls.append(words[words.index("dpotool") + 1])
        return SimpleNamespace(returncode=outcome.code)

    study = _import("smollm2/study.py")
    instead = SimpleNamespace(run=call, STDOUT=subprocess.STDOUT, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(study, "subprocess", instead)
    monkeypatch.setattr(study, "SFT_ROWS_SHORT", 4)
    data = folder / "data"
    data.mkdir()
    for name in ("tldr_train", "tldr_test"):
        write_pairs(data / f"{name}.jsonl", 12)
    only = "sft,dpo-seed42,shift-0.5-seed42,shift-0.75-seed42,diagnose-dpo-seed42"
    told = {"out": "out", "short": 1000, "max-length": 64, "pairs": 6, "test": 5, "steps": 2, "early": 1, "only": only}
    options = [f"--{name}={value}" for name, value in (told | {"scales": 0.5, "blends": 0.75}).items()]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["study.py", "tiny", "data", *options])
    study.main()
    log = (folder / "out" / "commands.log").read_text()
    assert "exit 0" in log and log.count("exit") == log.count("exit 0"), log
    scored = ["score"] * 4  # three runs and a checkpoint of DPO; a blend is scored when it is saved
    assert calls == [*["train"] * 4, *["blend"] * 2, "diagnose", *scored]
    study.main()
    assert len(calls) == 11
    capsys.readouterr()

    for words in (["--out", "out", "--collect", "all.csv"], ["--tabulate", "all.csv"]):
        monkeypatch.setattr(sys, "argv", ["study.py", *words])
        study.main()
    frame = pd.read_csv("all.csv")
    assert frame.groupby("run").size().eq(5).all()
    table = capsys.readouterr().out
    assert {line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")} >= {
        "dpo-seed42", "scaled-0.5", "blend-0.75", "shift-0.75-seed42", "shift-0.5-seed42",
    }  # fmt: skip
    means = frame.groupby("run")["chosen_displacement"].mean()
    assert f"chosen {means['blend-0.75'] - means['shift-0.75-seed42']:.2f} [" in table.splitlines()[-1]

    again = frame[frame["run"].isin(["dpo-seed42", "shift-0.5-seed42"])].replace(
        {"run": {"seed42": "seed1"}}, regex=True
    )
    again.loc[again["run"] == "shift-0.5-seed1", "chosen_displacement"] += 1  # so half a nat more over the two seeds
    pd.concat([frame, again]).to_csv("seeds.csv", index=False)
    [told] = [line for line in study.tabulate(Path("seeds.csv")).splitlines() if "2 seeds" in line]
    half = means["shift-0.5-seed42"] - means["dpo-seed42"] + 0.5
    assert told.startswith("shift-0.5 less DPO of the same seed") and f"chosen {half:.2f} [" in told


def test_every_example_is_listed_and_can_be_started() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    found = sorted(path for path in EXAMPLES.iterdir() if re.match(r"\d\d_", path.name))
    assert len(found) == 6
    for path in found:
        assert f"]({path.name})" in listed
        assert path.suffix == ".py" or os.access(path, os.X_OK)
    for script in (*EXAMPLES.glob("*.sh"), *(EXAMPLES / "smollm2").glob("*.sh")):
        subprocess.run(["bash", "-n", str(script)], check=True)
