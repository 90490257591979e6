"""The engine on a real pretrained model and real pairs: against autograd, and against a real step."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dpotool.data.pair_sets import tokenize_preferences
from dpotool.data.pairs import TokenizedPair
from dpotool.data.sources import load_preferences
from dpotool.gradients.engine import compute_fast_products
from dpotool.gradients.products import compute_gradient_products
from dpotool.gradients.real_steps import StepLab, in_float64
from dpotool.gradients.verification import find_largest_error, verify_gaps
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.loading import load_model, load_tokenizer

MODEL = os.environ.get("DPOTOOL_REAL_MODEL", "")
DATA = Path(__file__).parents[3] / "shared" / "data" / "tldr_test.jsonl"

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not Path(MODEL or "absent").is_dir(), reason="DPOTOOL_REAL_MODEL names no model folder"),
    pytest.mark.skipif(not DATA.is_file(), reason="real preference data is not at ../shared/data"),
]


@pytest.fixture(scope="module")
def pairs() -> list[TokenizedPair]:
    """The four shortest TL;DR pairs of the first hundred: posts of some 100 to 150 tokens."""
    found = tokenize_preferences(load_preferences(str(DATA), limit=100), load_tokenizer(MODEL), max_length=512).pairs
    return sorted(found, key=lambda pair: pair.longest)[:4]


def test_equals_autograd_in_float32(pairs: list[TokenizedPair]) -> None:
    model = load_model(MODEL, dtype="float32", device="cpu")
    fast, report = compute_fast_products(model, pairs)
    assert report.fallback == ()
    assert find_largest_error(fast, compute_gradient_products(model, pairs)) <= 1e-5


def test_equals_autograd_in_float64(pairs: list[TokenizedPair]) -> None:
    """Norms and rotary embeddings in float64 too."""
    model = load_model(MODEL, dtype="float32", device="cpu")
    with in_float64(model):
        fast, _ = compute_fast_products(model, pairs[:2])
        assert find_largest_error(fast, compute_gradient_products(model, pairs[:2])) <= 1e-9


def test_real_steps_leave_only_second_order(pairs: list[TokenizedPair]) -> None:
    model = load_model(MODEL, dtype="float32", device="cpu")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with in_float64(model):
        logps = compute_pair_logps(model, pairs[:2])
        reference = (logps.chosen - np.array([1.0, -0.5]), logps.rejected + np.array([0.3, 0.8]))
        lab = StepLab(model, dict(model.named_parameters()), pairs[:2], reference, beta=0.1, batch_tokens=1)
        verified = verify_gaps(lab, [0.75], gamma=1.0)
    for by_shift in verified.values():
        for gap in by_shift["0.75"].values():
            assert 1.9 <= gap["slope"] <= 2.1
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
