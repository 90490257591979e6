"""Scoring a sample in other company: what it picks, what it finds, and that it costs nothing twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import make_pairs
from model_families import build_family

from dpotool.cache.entries import list_entries
from dpotool.likelihood import noise
from dpotool.likelihood.noise import choose_sample, score_in_twos
from dpotool.likelihood.reference import load_or_compute_reference

PAIRS = make_pairs(20)


def test_the_sample_is_small_and_follows_from_content_alone() -> None:
    assert [len(choose_sample(make_pairs(n))) for n in (3, 8, 60, 100, 1000)] == [3, 8, 8, 12, 32]
    chosen = {PAIRS[place] for place in choose_sample(PAIRS)}
    turned = PAIRS[::-1]
    assert {turned[place] for place in choose_sample(turned)} == chosen


def test_second_values_equal_the_first_up_to_rounding_and_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    real = noise.compute_pair_logps

    def count(model: Any, pairs: Any, **kwargs: Any) -> Any:
        batches.append(len(pairs))
        return real(model, pairs, **kwargs)

    monkeypatch.setattr(noise, "compute_pair_logps", count)
    model = build_family("llama").float()
    first = load_or_compute_reference(model, PAIRS)
    again = score_in_twos(model, PAIRS[:7], first.fingerprint)
    assert batches == [2, 2, 2, 1]
    differences = np.abs(again - np.stack([first.chosen, first.rejected], axis=1)[:7])
    assert 0 < differences.max() < 1e-3, "float32 rounds otherwise in other batches, but not by much"
    np.testing.assert_array_equal(score_in_twos(model, PAIRS[:7], first.fingerprint), again)
    assert batches == [2, 2, 2, 1]
    (entry,) = list_entries()
    assert entry.n_pairs == 20, "a second value is no other pair"
