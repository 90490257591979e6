"""The benchmark of `--dry-run`: what it compares, and that it runs. Nothing is timed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tiny_models import save_tiny_model, write_pairs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("dry_run")
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_loading_is_left_out_of_both(bench: ModuleType) -> None:
    """12 s estimated and 14.5 taken, 2 of either for loading: 10 and 12.5. 300 MiB for 400."""
    estimate = {"seconds": {"loading": 2.0, "policy": 10.0, "total": 12.0}, "n_pairs": {"test": 7}, "peak_bytes": 300}
    row = bench.compare("score", estimate, bench.Outcome({}, seconds=14.5, peak_bytes=400))
    assert (row["estimate, s"], row["real, s"], row["time off by"]) == (10.0, 12.5, "-20%")
    assert (row["pairs"], row["memory off by"]) == ("7 test", "-25%")


def test_cases_are_the_built_in_ones_and_three_a_file(bench: ModuleType) -> None:
    args = argparse.Namespace(model="models/m", data=["a.jsonl", "b.jsonl"], pairs=5, steps=3, only="score,train")
    assert [case.name for case in bench.list_cases(args)] == [
        "score, built-in model",
        "train, built-in model",
        "score, m, a",
        "train, m, a",
        "score, m, b",
        "train, m, b",
    ]


@pytest.mark.slow
def test_a_command_is_estimated_and_run(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the scoring of eight pairs before it, which is for the times alone."""
    run = bench.run
    monkeypatch.setattr(bench, "run", lambda words, folder: None if "--limit" in words else run(words, folder))
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 24)
    (row,) = bench.measure([bench.Case("score", ("score", str(model), "--data", str(data)))])
    assert row["pairs"] == "24 all"
    assert row["estimate, s"] > 0 and row["real, MiB"] > 50
    assert (tmp_path / "cache" / "reference").is_dir(), "it was run for real"
