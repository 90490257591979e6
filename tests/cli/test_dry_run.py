"""`--dry-run`: says what a command would take, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_tiny_model

from dpotool.estimates import scoring as scoring_cost
from dpotool.likelihood import scorer


def list_files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.fixture
def plan(dpotool, tmp_path: Path, own_cache: Path):  # type: ignore[no-untyped-def]
    """Runs a command with --dry-run and --json, and makes sure that no file is new."""

    def run(*words: object) -> dict[str, Any]:
        before = list_files(tmp_path, own_cache)
        result = dpotool(*words, "--dry-run", "--json", "--device", "cpu")
        assert result.code == 0, result.err
        assert list_files(tmp_path, own_cache) == before
        return json.loads(result.out)

    return run


def test_score_counts_pairs_tokens_and_hits(dpotool, plan, model: Path, pairs: Path) -> None:  # type: ignore[no-untyped-def]
    """The reference has the policy's weights, so it finds what the policy will have put into the store."""
    words = ("score", model, "--reference", model, "--data", pairs)
    (found,) = plan(*words)["estimates"]
    assert (found["n_pairs"], found["n_cached"]) == ({"all": 24}, {"policy": 0, "reference": 24})
    assert found["batch_tokens"] == 2048
    assert 0 < found["n_tokens"] <= found["n_padded_tokens"]
    assert set(found["seconds"]) == {"loading", "policy", "policy, noise floor", "statistics", "total"}
    assert found["seconds"]["total"] == pytest.approx(sum(found["seconds"].values()) / 2)
    assert found["peak_bytes"] > 10**7
    assert dpotool(*words, "--device", "cpu", "--limit", 10).code == 0
    (found,) = plan(*words)["estimates"]
    assert found["n_cached"] == {"policy": 10, "reference": 24}


def test_what_is_stored_is_not_run(  # type: ignore[no-untyped-def]
    dpotool, plan, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First values as `train` stores them leave the second ones of the noise floor to do; then nothing is left."""
    words = ("score", model, "--data", pairs)
    assert dpotool(*words, "--device", "cpu", "--no-noise-floor").code == 0
    (found,) = plan(*words)["estimates"]
    assert set(found["seconds"]) == {"loading", "policy, noise floor", "statistics", "total"}
    assert (found["n_cached"], found["n_padded_tokens"], found["batch_tokens"]) == ({"policy": 24}, 0, 2048)
    (found,) = plan(*words, "--no-noise-floor", "--tokens")["estimates"]
    assert found["seconds"]["policy"] > 0 and found["n_cached"] == {"policy": 24}, "the store has no tokens"
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "compute_pair_logps", lambda *_, **__: pytest.fail("a batch was run"))
        (found,) = plan(*words, "--no-noise-floor")["estimates"]
    assert (found["n_padded_tokens"], found["batch_tokens"]) == (0, 0)
    assert dpotool(*words, "--device", "cpu").code == 0
    (found,) = plan(*words)["estimates"]
    assert set(found["seconds"]) == {"loading", "statistics", "total"}
    (found,) = plan(*words, "--measures", "ches,similarity")["estimates"]
    assert found["seconds"]["ches"] > 0 and found["seconds"]["similarity"] > 0, "measures are never in the store"
    shown = dpotool(*words, "--dry-run", "--device", "cpu").out
    assert "No batch was run for the policy" in shown and "tokens a batch" not in shown


def test_each_model_has_its_own_loading_time_and_peak(  # type: ignore[no-untyped-def]
    plan, model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is 10 s old when the first model is there and 25 when it is measured; the second is there at 27."""
    ages = iter([10.0, 25.0, 27.0, 40.0])
    monkeypatch.setattr(scoring_cost, "seconds_since_start", lambda: next(ages))
    other = save_tiny_model(tmp_path / "other", seed=1)
    found = plan("score", model, other, "--data", pairs)["estimates"]
    assert [estimate["seconds"]["loading"] for estimate in found] == [10.0, 2.0]
    ages = iter([10.0, 25.0, 27.0, 40.0])
    monkeypatch.setattr(scoring_cost, "reset_peak_bytes", lambda device: False)
    first, second = plan("score", model, other, "--data", pairs)["estimates"]
    assert second["probe"][-1].startswith("The memory is the peak of this model and of those before")
    assert not any("memory" in line for line in first["probe"])


def test_train_and_theory_gap(dpotool, plan, model: Path, pairs: Path) -> None:  # type: ignore[no-untyped-def]
    base = ("--model", model, "--data", pairs)
    found = plan("train", *base, "--test-fraction", 0.25, "--batch-size", 4, "--max-steps", 9, "--output", "run")
    assert found["n_pairs"] == {"train": 18, "evaluation": 6}
    assert found["n_cached"] == {"reference on train": 0, "reference on test": 0}
    assert set(found["seconds"]) >= {"reference on train", "forward and backward", "optimiser", "5 evaluations"}
    assert any(re.match(r"[345] micro-batches and 2 steps .* 9 and 9", line) for line in found["probe"])
    found = plan("theory-gap", *base, "--lambdas", "0.5")
    assert set(found["seconds"]) >= {"products of each pair", "products with the batch"}
    shown = dpotool("theory-gap", *base, "--dry-run", "--pairs-only", "--check", 3, "--device", "cpu")
    assert "peak memory" in shown.out and "The time of --check and --verify is not included." in " ".join(
        shown.out.split()
    )
    assert shown.out.rstrip().endswith("Nothing was written.") and "with the batch" not in shown.out


def test_what_cannot_be_measured_is_refused(dpotool, model: Path, pairs: Path) -> None:  # type: ignore[no-untyped-def]
    result = dpotool("train", "--dry-run", "--resume", "--output", "x", "--model", model, "--data", pairs)
    assert result.code == 1
    assert "--dry-run: only a new run of one process can be measured. Leave --resume" in result.err
