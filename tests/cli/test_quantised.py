"""A base in 4 or 8 bits, as bitsandbytes makes it, with an adapter: what works is right, the rest is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

pytest.importorskip("bitsandbytes")


FOUR = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


@pytest.fixture(params=[FOUR, {"load_in_8bit": True}], ids=["4 bits", "8 bits"])
def runs(dpotool: Any, model: Path, pairs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Path]:
    """The tiny model in few bits, and two steps of DPO of an adapter on it."""
    how = BitsAndBytesConfig(**request.param)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    AutoModelForCausalLM.from_pretrained(model, quantization_config=how).save_pretrained(base)
    AutoTokenizer.from_pretrained(model).save_pretrained(base)
    words = ("train", "--lora", "--model", base, "--data", pairs, "--test-fraction", "0.5", "--max-steps", "2")
    outcome = dpotool(*words, "--learning-rate", "0.01", "--device", "cpu", "--output", adapter)
    assert outcome.code == 0, outcome.err
    return {"base": base, "adapter": adapter}


def test_an_adapter_is_trained_scored_and_differentiated(dpotool: Any, runs: dict[str, Path], pairs: Path) -> None:
    outcome = dpotool("score", runs["adapter"])
    assert outcome.code == 0, outcome.err
    (table,) = (runs["adapter"] / "scores").glob("*.parquet")
    assert np.abs(pd.read_parquet(table)["chosen_displacement"]).max() > 0.01
    words = ("theory-gap", "--model", runs["adapter"], "--data", pairs, "--limit", "4", "--check", "2")
    outcome = dpotool(*words, "--output", "theory")
    assert outcome.code == 0, outcome.err
    assert "check: autograd agrees on 2 pairs" in outcome.out
    outcome = dpotool(*words, "--verify", "1", "--output", "verified")
    assert outcome.code == 1 and "--verify: computes in float64, which quantised" in outcome.err


def test_what_needs_whole_weights_is_refused_in_a_line(dpotool: Any, runs: dict[str, Path], pairs: Path) -> None:
    cases = {
        "train": ("--model", runs["base"], "--data", pairs),
        "theory-gap": ("--model", runs["base"], "--data", pairs),
        "predict": (runs["adapter"],),
        "blend": (runs["base"], runs["adapter"], "--weight", "0.5"),
    }
    for command, words in cases.items():
        outcome = dpotool(command, *words, "--output", "x")
        assert outcome.code == 1 and "quantised" in outcome.err, (command, outcome.err)
        assert outcome.err.count("error:") == 1
