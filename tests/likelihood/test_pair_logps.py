"""Scores of many pairs: nothing depends on batch composition or order, and each pair is scored once."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from model_families import build_family

from dpotool.likelihood.pair_logps import compute_pair_logps

MODEL = build_family("llama")
PAIRS = make_pairs(12)
EXPECTED = compute_pair_logps(MODEL, PAIRS, batch_tokens=1)  # one pair a batch


@settings(max_examples=25, deadline=None)
@given(budget=st.integers(1, 600), seed=st.integers(0, 99), n=st.integers(1, 12))
def test_independent_of_batches_and_order(budget: int, seed: int, n: int) -> None:
    chosen = random.Random(seed).sample(range(len(PAIRS)), n)
    got = compute_pair_logps(MODEL, [PAIRS[index] for index in chosen], batch_tokens=budget)
    np.testing.assert_allclose(got.chosen, EXPECTED.chosen[chosen], rtol=1e-12)
    np.testing.assert_allclose(got.rejected, EXPECTED.rejected[chosen], rtol=1e-12)


def test_tokens_add_up_to_the_sums() -> None:
    got = compute_pair_logps(MODEL, PAIRS, with_tokens=True)
    assert [len(c) for c, _ in got.tokens] == [len(pair.chosen_ids) for pair in PAIRS]
    assert [len(r) for _, r in got.tokens] == [len(pair.rejected_ids) for pair in PAIRS]
    assert [c.sum() for c, _ in got.tokens] == pytest.approx(EXPECTED.chosen.tolist(), rel=1e-12)


def test_progress_counts_every_pair_and_the_mode_is_restored() -> None:
    advanced: list[int] = []
    MODEL.train()
    compute_pair_logps(MODEL, PAIRS, batch_tokens=64, on_progress=advanced.append)
    assert sum(advanced) == len(PAIRS)
    assert MODEL.training
    MODEL.eval()
