"""The store of reference values: found by content, and by nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_family

from dpotool.likelihood import reference
from dpotool.likelihood.reference import load_or_compute_reference

PAIRS = make_pairs(6)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs each call had to compute."""
    computed: list[int] = []
    real = reference.compute_pair_logps

    def count(model: Any, pairs: Any, **kwargs: Any) -> Any:
        computed.append(len(pairs))
        return real(model, pairs, **kwargs)

    monkeypatch.setattr(reference, "compute_pair_logps", count)
    return computed


def test_second_call_computes_nothing_and_gives_the_same(counted: list[int]) -> None:
    model = build_family("llama")
    first, second = load_or_compute_reference(model, PAIRS), load_or_compute_reference(model, PAIRS)
    assert counted == [6]
    assert (first.n_cached, second.n_cached) == (0, 6)
    np.testing.assert_array_equal(first.chosen, second.chosen)
    np.testing.assert_array_equal(first.rejected, second.rejected)


def test_subsets_and_supersets_hit(counted: list[int]) -> None:
    model = build_family("llama")
    load_or_compute_reference(model, PAIRS[:4])
    load_or_compute_reference(model, PAIRS[1:3])
    result = load_or_compute_reference(model, PAIRS[::-1])
    assert counted == [4, 2]
    direct = reference.compute_pair_logps(model, PAIRS[::-1])
    np.testing.assert_allclose(result.chosen, direct.chosen, rtol=1e-12)


def test_a_changed_weight_type_or_boundary_misses(counted: list[int]) -> None:
    model = build_family("llama")
    load_or_compute_reference(model, PAIRS)
    moved = [
        replace(pair, prompt_ids=(*pair.prompt_ids, pair.chosen_ids[0]), chosen_ids=pair.chosen_ids[1:])
        for pair in PAIRS
        if len(pair.chosen_ids) > 1
    ]
    load_or_compute_reference(model, moved)
    load_or_compute_reference(model, PAIRS, autocast=torch.bfloat16)
    load_or_compute_reference(model.float(), PAIRS)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    load_or_compute_reference(model, PAIRS)
    assert counted == [6, len(moved), 6, 6, 6]


def test_duplicate_pairs_are_computed_once(counted: list[int]) -> None:
    twice = [*PAIRS, *(replace(pair, pair_id=pair.pair_id + 6) for pair in PAIRS)]
    result = load_or_compute_reference(build_family("llama"), twice)
    assert counted == [6]
    assert len(result.chosen) == 12


def test_a_broken_file_only_costs_time(counted: list[int], own_cache: Path) -> None:
    model = build_family("llama")
    load_or_compute_reference(model, PAIRS)
    [stored] = own_cache.rglob("*.parquet")
    stored.write_bytes(b"PAR1 half a file")
    result = load_or_compute_reference(model, PAIRS)
    assert counted == [6, 6]
    assert np.isfinite(result.chosen).all()


def test_an_unwritable_store_costs_no_result(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    result = load_or_compute_reference(build_family("llama"), PAIRS, store=blocked)
    assert len(result.chosen) == 6
    assert "reference values are not kept" in caplog.text
