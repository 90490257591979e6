"""`validate` and `filter` on the command line: what they print, exit codes, JSON, pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_validate_prints_the_answer_and_a_narrow_table(dpotool: Any, pairs: Path) -> None:
    outcome = dpotool("validate", pairs)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("pairs [all]: 24 rows were checked; found: ")
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
    assert outcome.out.startswith("12 pairs are kept and 12 dropped")
    folder = tmp_path / "filtered" / "pairs-all-random"
    names = {"pairs-all-kept.jsonl", "pairs-all-dropped.jsonl", "filter.json"}
    assert {path.name for path in folder.iterdir()} == names
