"""A scorer and its store: values are found by content, and by nothing else."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import make_pairs
from forks import Fork
from model_families import build_family

from dpotool.cache import parts
from dpotool.cache.checking import check_store
from dpotool.cache.entries import list_entries
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood import scorer, store
from dpotool.likelihood.scorer import Scorer

PAIRS = make_pairs(6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each call had to compute."""
    computed: list[int] = []
    real = scorer.compute_pair_logps

    def count(model: Any, pairs: Any, **kwargs: Any) -> Any:
        computed.append(len(pairs))
        return real(model, pairs, **kwargs)

    monkeypatch.setattr(scorer, "compute_pair_logps", count)
    return computed


def test_the_fingerprint_is_taken_once_and_only_where_the_store_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    real = scorer.fingerprint_model
    monkeypatch.setattr(scorer, "fingerprint_model", lambda model: taken.append(real(model)) or taken[-1])
    model = build_family("llama")
    scoring = Scorer(model)
    scoring.compute(PAIRS)
    assert taken == []
    scoring.score(PAIRS)
    assert scoring.find_missing(PAIRS) == [] and scoring.fingerprint == real(model)
    assert len(taken) == 1
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert scoring.renewed("moved").find_missing(PAIRS) == PAIRS


def test_second_call_computes_nothing_and_gives_the_same(counted: list[int]) -> None:
    model = build_family("llama")
    first, second = Scorer(model).score(PAIRS), Scorer(model).score(PAIRS)
    assert counted == [6]
    assert (first.n_stored, second.n_stored) == (0, 6)
    np.testing.assert_array_equal(first.chosen, second.chosen)
    np.testing.assert_array_equal(first.rejected, second.rejected)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "bloom", "opt", "qwen3-moe"])
def test_stored_values_are_those_of_the_model_whatever_its_family(family: str) -> None:
    """Stored in batches of one, found by other pairs in another order, and as they are computed together."""
    model = build_family(family)
    with EverythingInFloat64():
        stored = Scorer(model, batch_tokens=1, layout="paired").score(PAIRS[:4])
        found = Scorer(model, batch_tokens=10_000).score(PAIRS[::-1])
        direct = scorer.compute_pair_logps(model, PAIRS)
    assert found.n_stored == 4
    np.testing.assert_array_equal(found.stack()[:1:-1], stored.stack())
    np.testing.assert_allclose(found.stack()[::-1], np.stack([direct.chosen, direct.rejected], axis=1), rtol=1e-12)


def test_subsets_and_supersets_hit(counted: list[int]) -> None:
    model = build_family("llama")
    Scorer(model).score(PAIRS[:4])
    Scorer(model).score(PAIRS[1:3])
    result = Scorer(model).score(PAIRS[::-1])
    assert counted == [4, 2]
    direct = scorer.compute_pair_logps(model, PAIRS[::-1])
    np.testing.assert_allclose(result.chosen, direct.chosen, rtol=1e-12)


def test_a_changed_weight_type_or_boundary_misses(counted: list[int]) -> None:
    model = build_family("llama")
    Scorer(model).score(PAIRS)
    moved = [
        replace(pair, prompt_ids=(*pair.prompt_ids, pair.chosen_ids[0]), chosen_ids=pair.chosen_ids[1:])
        for pair in PAIRS
        if len(pair.chosen_ids) > 1
    ]
    Scorer(model).score(moved)
    Scorer(model, autocast=torch.bfloat16).score(PAIRS)
    Scorer(model.float()).score(PAIRS)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    Scorer(model).score(PAIRS)
    assert counted == [6, len(moved), 6, 6, 6]


def test_duplicate_pairs_are_computed_once(counted: list[int]) -> None:
    twice = [*PAIRS, *(replace(pair, pair_id=pair.pair_id + 6) for pair in PAIRS)]
    result = Scorer(build_family("llama")).score(twice)
    assert counted == [6]
    assert len(result.chosen) == 12


def test_a_broken_file_only_costs_time(counted: list[int], own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build_family("llama")
    Scorer(model).score(PAIRS)
    [stored] = own_cache.rglob("*.parquet")
    stored.write_bytes(b"PAR1 half a file")
    result = Scorer(model).score(PAIRS)
    assert counted == [6, 6]
    assert f"{stored}: damaged, so values in it are computed again" in caplog.text
    assert np.isfinite(result.chosen).all()


def test_a_broken_file_is_no_news_once_its_values_are_there_again(
    own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Four pairs are computed again together with two new ones, so the part they go into has another name."""
    model = build_family("llama")
    Scorer(model).score(PAIRS[:4])
    [stored] = own_cache.rglob("*.parquet")
    stored.write_bytes(b"PAR1 half a file")
    Scorer(model).score(PAIRS)
    assert stored.read_bytes() == b"PAR1 half a file" and "damaged" in caplog.text
    caplog.clear()
    assert Scorer(model).score(PAIRS).n_stored == 6
    assert caplog.text == ""


def test_a_store_that_cannot_be_used_costs_no_result(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    model = build_family("llama")
    for place in (blocked, tmp_path / "of another user"):
        caplog.clear()
        assert len(Scorer(model, store=place).score(PAIRS).chosen) == 6
        assert "values are not kept in the store" in caplog.text
        monkeypatch.setattr(parts, "list_parts", Mock(side_effect=PermissionError(13, "Permission denied")))


def test_an_interruption_keeps_what_was_finished(counted: list[int]) -> None:
    model = build_family("llama")
    seen: list[int] = []

    def stop(n: int) -> None:
        seen.append(n)
        if len(seen) == 4:  # the first call tells what was in the store
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^what was computed of 3 pairs is stored, and the same command"):
        Scorer(model, batch_tokens=1).score(PAIRS, on_progress=stop)
    assert seen == [0, 1, 1, 1]
    result = Scorer(model).score(PAIRS)
    assert (counted, result.n_stored) == ([6, 3], 3)


def test_values_are_written_while_others_are_computed(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no time between writes every batch of one pair makes a file, and at sixteen files they become one."""
    monkeypatch.setattr(store, "SECONDS_BETWEEN_WRITES", 0.0)
    model, files = build_family("llama"), []

    def look(_: int) -> None:
        files.append(len(list(own_cache.rglob("*.parquet"))))

    Scorer(model, batch_tokens=1).score(PAIRS, on_progress=look)
    assert files == [0, 1, 2, 3, 4, 5, 6]
    Scorer(model, batch_tokens=1).score(make_pairs(20, seed=1))
    assert len(list(own_cache.rglob("*.parquet"))) == 1
    assert Scorer(model).score([*PAIRS, *make_pairs(20, seed=1)]).n_stored == 26


def test_what_is_not_finite_is_computed_again(counted: list[int]) -> None:
    model = build_family("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = float("nan")
    assert np.isnan(Scorer(model).score(PAIRS).chosen).all()
    Scorer(model).score(PAIRS)
    assert counted == [6, 6]


THE_OTHER = """
import sys, time
from pathlib import Path
from conftest import make_pairs
from forks import Fork
from transformers import LlamaForCausalLM
from dpotool.likelihood import store
from dpotool.likelihood.scorer import Scorer
store.SECONDS_BETWEEN_WRITES = 0.0
folder, ready, go = map(Path, sys.argv[1:])
model = LlamaForCausalLM.from_pretrained(folder)
ready.touch()
while not go.exists():
    time.sleep(0.001)
found = Scorer(model, batch_tokens=1).score(make_pairs(24)[:16])
again = Scorer(model).score(make_pairs(24)[:16])
assert again.n_stored == 16, again.n_stored
assert (abs(found.chosen - again.chosen) < 1e-9).all()
"""


@pytest.mark.slow
def test_two_processes_share_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes 16 of 24 pairs, 8 of them both do; afterwards all 24 are there, and they are the right ones."""
    monkeypatch.setattr(store, "SECONDS_BETWEEN_WRITES", 0.0)
    model, pairs = build_family("llama"), make_pairs(24)
    direct = scorer.compute_pair_logps(model, pairs)
    model.save_pretrained(tmp_path / "model")
    paths = [tmp_path / name for name in ("model", "ready", "go")]
    ready, go = paths[1:]
    other = Fork([sys.executable, "-c", THE_OTHER, *map(str, paths)], tmp_path / "said.txt")
    while not ready.exists():
        assert other.poll() is None, other.read_output()
        time.sleep(0.01)
    go.touch()
    Scorer(model, batch_tokens=1).score(pairs[8:][::-1])
    assert other.wait(timeout=120) == 0, other.read_output()
    result = Scorer(model).score(pairs)
    assert result.n_stored == 24
    np.testing.assert_allclose(result.rejected, direct.rejected, rtol=1e-9)
    (entry,) = list_entries()
    assert (entry.n_pairs, check_store(entry).is_sound) == (24, True)
