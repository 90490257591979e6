"""`dpotool cache` after real scorings: what it lists, checks, computes again and deletes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpotool.cache.parts import list_parts, write_part
from dpotool.likelihood import scorer


@pytest.fixture
def scored(dpotool, model: Path, pairs: Path, own_cache: Path) -> Path:  # type: ignore[no-untyped-def]
    """The one folder of values that a scoring left."""
    assert dpotool("score", model, "--data", pairs, "--device", "cpu", "--no-noise-floor").code == 0
    (folder,) = (own_cache / "reference").iterdir()
    return folder


def test_ls_names_the_model_and_its_pairs(dpotool, scored: Path, model: Path) -> None:  # type: ignore[no-untyped-def]
    shown = dpotool("cache", "ls")
    assert shown.code == 0 and f"…{str(model)[-28:]} " in shown.out and "holds 1 entry" in shown.out
    assert max(map(len, shown.out.splitlines()[1:])) <= 80
    assert str(model) in dpotool("cache", "ls", "--full").out
    (entry,) = json.loads(dpotool("cache", "ls", "--json").out)["entries"]
    assert entry["models"] == [str(model)]
    assert (entry["n_pairs"], entry["types"], entry["fingerprint"]) == (24, "float32", scored.name[:16])
    assert entry["n_bytes"] == sum(path.stat().st_size for path in scored.iterdir())


def test_verify_counts_pairs_as_ls_does(dpotool, scored: Path, model: Path, pairs: Path) -> None:  # type: ignore[no-untyped-def]
    """The noise floor's second values of 8 pairs are in the store too."""
    assert dpotool("score", model, "--data", pairs, "--device", "cpu").code == 0
    (store,) = json.loads(dpotool("cache", "verify", "--json").out)["stores"]
    (entry,) = json.loads(dpotool("cache", "ls", "--json").out)["entries"]
    assert store["n_pairs"] == entry["n_pairs"] == 24
    assert "2 files of 1 model were read, with 24 pairs" in dpotool("cache", "verify").out


def test_a_second_scoring_computes_nothing(dpotool, scored: Path, model: Path, pairs: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("score", model, "--data", pairs, "--device", "cpu")
    first = dpotool(*words)
    assert "24 of 24 pairs were in the store" in first.err
    parts = list_parts(scored)
    assert len(parts) == 2, "the noise floor was measured for the first time"
    again = dpotool(*words)
    assert list_parts(scored) == parts
    assert again.out == first.out
    again = dpotool(*words, "--full")
    assert "8 pairs, scored again in other batches, moved by up to" in again.out


def test_verify_computes_again_and_finds_a_forged_value(dpotool, scored: Path, model: Path, pairs: Path) -> None:  # type: ignore[no-untyped-def]
    """Whose file's name was made to fit it; otherwise the name gives it away."""
    words = ("cache", "verify", "--recompute", 24, "--model", model, "--data", pairs, "--device", "cpu")
    sound = dpotool(*words, "--json")
    found = json.loads(sound.out)
    assert sound.code == 0 and [store["is_sound"] for store in found["stores"]] == [True]
    assert (found["recompute"]["n_stored"], found["recompute"]["n_compared"]) == (24, 24)
    assert found["recompute"]["largest_difference"] < 1e-3
    (part,) = list_parts(scored)
    frame = pd.read_parquet(part)
    frame.loc[3, "chosen_logps"] -= 1.5
    frame.to_parquet(part, index=False)
    named = dpotool("cache", "verify")
    assert named.code == 1 and "its values are not those that were written for these pairs" in named.err
    part.unlink()
    write_part(scored, {key: (chosen, rejected) for key, chosen, rejected in frame.itertuples(index=False)})
    forged = dpotool(*words)
    assert forged.code == 1
    assert "Stored pairs computed again: 24 of 24. The largest difference is 1.5 nats" in forged.out
    assert "1 pair differs by more than rounding explains" in forged.err


def test_verify_computes_in_the_layout_that_is_asked_for(  # type: ignore[no-untyped-def]
    dpotool, scored: Path, model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = scorer.compute_pair_logps

    def note(*args: Any, **options: Any) -> Any:
        asked.append(options["layout"])
        return real(*args, **options)

    monkeypatch.setattr(scorer, "compute_pair_logps", note)
    words = ("cache", "verify", "--recompute", 2, "--model", model, "--data", pairs, "--device", "cpu")
    assert dpotool(*words, "--layout", "paired").code == 0
    assert asked == ["paired"]


def test_verify_names_a_damaged_file(dpotool, scored: Path) -> None:  # type: ignore[no-untyped-def]
    (part,) = list_parts(scored)
    part.write_bytes(b"half")
    result = dpotool("cache", "verify")
    assert result.code == 1
    assert f"{part}: damaged" in " ".join(result.err.split()) and "Delete it" in result.err
    assert "1 of 1 model has problems" in result.out


def test_verify_says_what_it_needs(dpotool, scored: Path, model: Path) -> None:  # type: ignore[no-untyped-def]
    nameless = dpotool("cache", "verify", "--recompute", 2)
    assert nameless.code == 1 and "no model is named. Name it with --model" in nameless.err
    words = ("cache", "verify", "--recompute", 2, "--model", model, "--data", "builtin:demo", "--limit", 3)
    others = dpotool(*words, "--device", "cpu")
    assert others.code == 1 and "none of the 3 pairs is in the store" in others.err


def test_clear_asks_first_and_says_what_it_freed(dpotool, scored: Path, model: Path) -> None:  # type: ignore[no-untyped-def]
    refused = dpotool("cache", "clear")
    assert refused.code == 1 and "Pass --yes" in refused.err and scored.is_dir()
    assert json.loads(dpotool("cache", "clear", "--older-than", 1, "--yes", "--json").out)["n_files"] == 0
    assert scored.is_dir()
    cleared = dpotool("cache", "clear", "--model", model, "--yes")
    assert cleared.code == 0 and cleared.out.startswith("freed ") and "2 files of 1 entry" in cleared.out
    assert not scored.exists()
    assert "holds 0 entries" in dpotool("cache", "ls").out
