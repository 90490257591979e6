"""`validate` and `filter` on the command line: what they print, exit codes, JSON, pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml


def test_validate_prints_the_answer_and_a_narrow_table(dpotool: Any, pairs: Path) -> None:
    outcome = dpotool("validate", pairs)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert " ".join(lines[:3]).count("24 rows were checked in pairs [all], and ") == 1
    assert any("finding" in line and "severity" in line for line in lines)
    assert "why:" not in outcome.out
    assert "why:" in dpotool("validate", pairs, "--full").out


def test_strict_fails_on_an_error_and_on_nothing_else(dpotool: Any, tmp_path: Path) -> None:
    row = {"prompt": "Say a colour:", "chosen": " Red is what I say.", "rejected": " Never a blue one."}
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(row) + "\n", encoding="utf-8")
    bad.write_text(json.dumps(row) + "\n" + json.dumps(row | {"rejected": row["chosen"]}) + "\n", encoding="utf-8")
    assert dpotool("validate", good, "--strict").code == 0
    assert dpotool("validate", bad).code == 0
    assert dpotool("validate", bad, "--strict").code == 1
    found = json.loads(dpotool("validate", bad, "--json").out)["findings"]
    assert [(each["name"], each["rows"]) for each in found if each["severity"] == "error"] == [("identical", [1])]


def test_pages_are_written_and_printed(dpotool: Any, pairs: Path, tmp_path: Path) -> None:
    for name in ("page.md", "page.html"):
        assert dpotool("validate", pairs, "--output", name).code == 0
        assert "Check-up of pairs" in (tmp_path / name).read_text(encoding="utf-8")
    assert dpotool("validate", pairs, "--format", "markdown").out.startswith("# Check-up of pairs")
    outcome = dpotool("validate", pairs, "--output", "page.txt")
    assert outcome.code == 1 and "FILE.md or FILE.html" in outcome.err


def test_tokens_stand_beside_their_ids(dpotool: Any, pairs: Path, model: Path) -> None:
    outcome = dpotool("validate", pairs, "--model", model, "--full")
    assert outcome.code == 0, outcome.err
    assert " ‖ " in outcome.out and "2‘<eos>’" in outcome.out


def test_leave_out_has_no_effect_alone(dpotool: Any, pairs: Path) -> None:
    outcome = dpotool("validate", pairs, "--leave-out", "duplicate")
    assert outcome.code == 1 and "--write" in outcome.err
    outcome = dpotool("validate", pairs, "--write", "clean.jsonl", "--leave-out", "duplicates")
    assert outcome.code == 1 and "'duplicate'" in outcome.err


def test_filter_says_what_it_wrote(dpotool: Any, pairs: Path, tmp_path: Path) -> None:
    outcome = dpotool("filter", pairs, "--by", "random", "--keep", "0.5")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("12 pairs are kept and 12 pairs are dropped: those with the highest values of")
    folder = tmp_path / "filtered" / "pairs-all-random"
    names = {"pairs-all-kept.jsonl", "pairs-all-dropped.jsonl", "filter.json"}
    assert {path.name for path in folder.iterdir()} == names


@pytest.mark.usefixtures("no_conclusion")
def test_pairs_that_drive_displacement_are_left_out_of_a_training_and_of_a_sweep(
    dpotool: Any, model: Path, tmp_path: Path
) -> None:
    """The table of `theory-gap`, and that of `diagnose`, which has its driver scores, name the same rows."""
    pairs = tmp_path / "pairs.jsonl"  # a step on them gains margin, as all of them want the same
    rows = [{"prompt": f"Is it {n}?", "chosen": f" yes, {n * n}", "rejected": f" no, {n}"} for n in range(24)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = ("--data", pairs, "--output", "start")
    assert dpotool("theory-gap", "--model", model, *common).code == 0
    assert dpotool("diagnose", model, "--reference", model, "--no-mass", *common).code == 0
    theory = pd.read_parquet(tmp_path / "start" / "theory" / "pairs-all.parquet").set_index("pair_id")
    drivers = sorted(theory["driver_score"].nsmallest(6).index)
    for kind in ("theory", "diagnosis"):
        table = tmp_path / "start" / kind / "pairs-all.parquet"
        words = ("--by", "driver_score", "--drop-top", 6, "--table", table, "--output", f"by-{kind}", "--json")
        outcome = dpotool("filter", pairs, *words)
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["dropped"]["rows"] == drivers
    kept = next((tmp_path / "by-theory").glob("*-kept.jsonl"))
    assert kept.read_bytes() == next((tmp_path / "by-diagnosis").glob("*-kept.jsonl")).read_bytes()
    words = ("--model", model, "--data", kept, "--eval-data", pairs, "--max-steps", 1, "--batch-size", 18)
    trained = dpotool("train", *words, "--output", "run", "--json")
    swept = dpotool("sweep", *words, "--lambdas", "1", "--no-controls", "--output", "swept", "--json")
    assert (trained.code, swept.code) == (0, 0), trained.err + swept.err
    for run in (tmp_path / "run", next((tmp_path / "swept").glob("*/run.yaml")).parent):
        config = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
        assert config["data"]["train"]["n_pairs"] == 18, config
