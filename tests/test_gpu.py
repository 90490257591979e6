"""On a CUDA device: the numbers of the CPU, in every layout, and the commands from end to end.

None of this runs on a machine without one; the same properties are tested on the CPU elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pairs
from gradients.engine_checks import assert_equals_slow_truth
from model_families import build_family
from tiny_models import save_tiny_model, write_pairs

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.double_precision import EverythingInFloat64
from dpotool.likelihood import pair_logps
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.scoring.config import ScoreConfig
from dpotool.scoring.run import score_models
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PAIRS = make_pairs(7)
LAYOUTS = ("shared", "paired")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_the_cpu(family: str, layout: str) -> None:
    model = build_family(family)
    expected = compute_pair_logps(model, PAIRS, layout="paired")
    got = compute_pair_logps(model.to("cuda"), PAIRS, layout=layout, batch_tokens="auto")
    np.testing.assert_allclose(got.chosen, expected.chosen, rtol=1e-6)
    np.testing.assert_allclose(got.rejected, expected.rejected, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_near_float64(layout: str) -> None:
    model = build_family("llama")
    expected = compute_pair_logps(model, PAIRS)
    got = compute_pair_logps(model.to("cuda", torch.bfloat16), PAIRS, layout=layout)
    np.testing.assert_allclose(got.chosen, expected.chosen, rtol=0.02)


def test_gradients_of_both_layouts_are_equal() -> None:
    model = build_family("llama").to("cuda")
    found = []
    for layout in LAYOUTS:
        model.zero_grad()
        batch = RowLayout.of(model, layout).collate_step(PAIRS).to(torch.device("cuda"))
        with EverythingInFloat64():  # norms would else be in float32
            compute_completion_logps(model, batch).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["llama-tied-biased", "gpt2", "qwen3"])
def test_gradient_products_equal_autograd(family: str) -> None:
    assert_equals_slow_truth(build_family(family).to("cuda"), PAIRS, tolerance=1e-9)


def test_a_batch_too_large_for_the_device_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real refusal: the process may have a sliver of the device's memory, which the whole batch does not fit into."""
    model = build_family("llama", dtype=torch.float32)
    pairs = make_pairs(400, longest=60)
    expected = compute_pair_logps(model, pairs)
    sizes: list[int] = []
    score = pair_logps._score_batch

    def note(model: object, batch: list[TokenizedPair], *others: object) -> list[pair_logps.ScoredPair]:
        sizes.append(len(batch))
        return score(model, batch, *others)

    monkeypatch.setattr(pair_logps, "_score_batch", note)
    model.to("cuda")
    limit = torch.cuda.memory_allocated() + 64 * 2**20
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        got = compute_pair_logps(model, pairs, batch_tokens=10**6, layout="paired")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(got.chosen, expected.chosen, rtol=1e-4)
    assert len(sizes) > 1 and max(sizes) == len(pairs), "all at once was refused"


@pytest.mark.parametrize("lora", [False, True])
def test_training_and_scoring_from_end_to_end(lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 32)
    result = train(
        TrainConfig(
            model=str(model),
            data=str(data),
            test_fraction=0.25,
            output=str(tmp_path / "run"),
            loss="shift",
            lora=lora,
            max_steps=3,
            batch_size=8,
            device="cuda",
        )
    )
    assert result.folder.read_manifest()["status"] == "finished"
    tables = []
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / f"cache-{device}"))  # or the store would answer
        tables += [scored.frame for scored in score_models([str(result.folder.path)], ScoreConfig(device=device))]
    for column in ("chosen_logps", "rejected_logps", "ref_chosen_logps"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=1e-3)
