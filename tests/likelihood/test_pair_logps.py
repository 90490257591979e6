"""Scores of many pairs: nothing depends on batch composition or order, and each pair is scored once.

What is not finite is told from what is: never ok, never stored, never in a mean, never spread to other pairs.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from model_families import build_family
from safetensors.torch import load_file, save_file
from tiny_models import build_byte_tokenizer, save_tiny_model, write_pairs

from dpotool.errors import DpotoolError
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.scorer import Scorer
from dpotool.measures.run import score_models
from dpotool.models.loading import load_model
from dpotool.settings.scoring import ScoreConfig
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

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


EMBEDDING = "model.embed_tokens.weight"


def spoil(folder: Path, token: str | None, name: str = EMBEDDING) -> Path:
    """Puts a NaN into the row of a token, or of one that no pair has."""
    row = 258 if token is None else build_byte_tokenizer().convert_tokens_to_ids(token)
    weights = load_file(folder / "model.safetensors")
    weights[name][row, 0] = math.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("layout", ["shared", "paired"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_one_token_spoils_its_own_completions_and_no_other(family: str, layout: str) -> None:
    model, pairs = build_family(family), make_pairs(8, longest=6)
    whole = compute_pair_logps(model, pairs, layout=layout)
    spoilt = pairs[2].rejected_ids[0]
    has_it = np.array([[spoilt in (*p.prompt_ids, *ids) for ids in (p.chosen_ids, p.rejected_ids)] for p in pairs])
    assert has_it[2, 1]
    assert not has_it.all()
    with torch.no_grad():
        model.get_input_embeddings().weight[spoilt] = math.nan
    got = compute_pair_logps(model, pairs, layout=layout).stack()
    assert np.array_equal(~np.isfinite(got), has_it)
    assert np.allclose(got[~has_it], whole.stack()[~has_it], atol=1e-9)


@pytest.mark.parametrize("layout", ["shared", "paired"])
def test_padding_is_made_of_a_rows_own_tokens(layout: str) -> None:
    """A padding token without an embedding (Gemma-3n's is zero, here it is NaN) does not matter."""
    model, pairs = build_family("llama"), make_pairs(6)
    expected = compute_pair_logps(model, pairs, layout=layout).stack()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = math.nan
    assert np.allclose(compute_pair_logps(model, pairs, layout=layout).stack(), expected, atol=1e-9)


def test_what_is_not_finite_is_not_stored(tmp_path: Path) -> None:
    model, pairs = build_family("llama"), make_pairs(6, longest=4)
    with torch.no_grad():
        model.get_input_embeddings().weight[pairs[0].chosen_ids[0]] = math.nan
    scorer = Scorer(model, store=tmp_path)
    first = scorer.score(pairs).stack()
    n_bad = int((~np.isfinite(first)).any(axis=1).sum())
    assert 0 < n_bad < len(pairs)
    assert len(scorer.find_missing(pairs)) == n_bad
    assert np.array_equal(scorer.score(pairs).stack(), first, equal_nan=True)


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = write_pairs(tmp_path / "p.jsonl", 12)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].replace('rejected": "', 'rejected": " ~'), *lines[4:]]) + "\n")
    return str(path)


def test_a_row_that_nobody_uses_changes_nothing(data: str, tmp_path: Path) -> None:
    whole, spoilt = (save_tiny_model(tmp_path / name) for name in "ab")
    spoil(spoilt, None)
    results = [
        score_models([str(f)], ScoreConfig(data=data, output=f"{f}-o", noise_floor=False))[0] for f in (whole, spoilt)
    ]
    assert np.array_equal(results[0].frame["chosen_logps"], results[1].frame["chosen_logps"])
    assert set(results[1].frame["status"]) == {"ok"}
    train(TrainConfig(model=str(spoilt), data=data, max_steps=1, output=str(tmp_path / "run")))


@pytest.mark.parametrize("role", ["model", "reference"])
def test_a_row_that_one_token_uses_leaves_its_pair_out(role: str, data: str, tmp_path: Path) -> None:
    whole, spoilt = save_tiny_model(tmp_path / "a"), spoil(save_tiny_model(tmp_path / "b"), "~")
    model, reference = (spoilt, whole) if role == "model" else (whole, spoilt)
    config = ScoreConfig(data=data, reference=str(reference), output=str(tmp_path / "o"))
    result = score_models([str(model)], config)[0]
    statuses = list(result.frame["status"])
    assert statuses[3] == f"its log-probability under the {role} is not finite"
    assert [*statuses[:3], *statuses[4:]] == ["ok"] * 11
    row = result.frame.loc[3, ["chosen_logps", "rejected_logps", "reward_margins"]].to_numpy(dtype=float)
    assert np.isnan(row).all()
    assert result.summary["n"] == 11
    assert sum(result.summary["n_excluded"].values()) == 1
    assert math.isfinite(result.summary["chosen_logps"]["mean"])


def test_weights_that_are_not_numbers_are_named(data: str, tmp_path: Path) -> None:
    spoilt = spoil(save_tiny_model(tmp_path / "m"), "~", "lm_head.weight")
    with pytest.raises(DpotoolError, match=r"not finite for 12 of 12 pairs.*not finite in lm_head\.weight"):
        score_models([str(spoilt)], ScoreConfig(data=data, output=str(tmp_path / "o")))


def test_training_says_so_before_the_first_step_and_does_not_blame_the_store(data: str, tmp_path: Path) -> None:
    spoilt = spoil(save_tiny_model(tmp_path / "m"), "~")
    with pytest.raises(DpotoolError, match=r"not finite for 1 of 12 pairs \(3\)") as caught:
        train(TrainConfig(model=str(spoilt), data=data, max_steps=1, output=str(tmp_path / "run")))
    assert "cache" not in str(caught.value)
    assert next(load_model(str(spoilt)).parameters()).isnan().any()
