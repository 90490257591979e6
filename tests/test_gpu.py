"""On a CUDA device: the numbers of the CPU, in every layout, and the commands from end to end.

None of this runs on a machine without one; the same properties are tested on the CPU elsewhere.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_pairs
from gradients.engine_checks import assert_equals_slow_truth
from model_families import build_family
from safetensors.torch import load_file
from shell_scripts import call_dpotool
from tiny_models import save_tiny_model, write_pairs
from transformers import AutoTokenizer

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.engine import compute_fast_products
from dpotool.gradients.monitor import TheoryMonitor
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.gradients.run import run_theory
from dpotool.likelihood import pair_logps, part_attention
from dpotool.likelihood.batch import collate_pairs, collate_shared
from dpotool.likelihood.budget import MOST_TOKENS_ELSEWHERE, estimate_bytes_per_token, resolve_batch_tokens
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.measures.run import score_models
from dpotool.models.precision import choose_float32_products
from dpotool.settings.scoring import ScoreConfig, TheoryConfig
from dpotool.training.config import TrainConfig
from dpotool.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[1]
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


def test_float32_products_of_16_bit_factors_lose_nothing_on_fast_units(gpu_precision: None) -> None:
    """TF32 units keep 11 bits of a factor, of which bfloat16 has 8; what is left is how they add up, a few 1e-6.

    Factors that do lose bits are a hundred times as far off.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    left, right = (
        torch.randn(512, 4096, device="cuda", generator=generator).to(torch.bfloat16).float() for _ in range(2)
    )
    assert choose_float32_products(left.device, torch.bfloat16) == "high"
    assert _measure_error(left, right) < 2e-5
    assert _measure_error(left * 1.001, right) > 1e-4
    assert choose_float32_products(left.device, torch.float32) == "highest"
    assert _measure_error(left * 1.001, right) < 1e-6


def test_attention_by_parts_is_that_of_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel against the mask in float32; then log-probabilities and gradients of a model in bfloat16."""
    device = torch.device("cuda")
    assert part_attention.is_trusted(device, torch.bfloat16) and not part_attention.is_trusted(device, torch.float32)
    assert part_attention.measure_error(device, torch.bfloat16) < 0.02
    model = build_family("llama", dtype=torch.bfloat16).to(device)
    batch = collate_shared(PAIRS).to(device)
    found = []
    for is_trusted in (part_attention.is_trusted, lambda _device, _dtype: False):
        monkeypatch.setattr(part_attention, "is_trusted", is_trusted)
        logps = compute_completion_logps(model, batch)
        logps.sum().backward()
        found.append((logps.detach(), model.lm_head.weight.grad.float()))
        model.zero_grad(set_to_none=True)
    for got, expected in zip(*found, strict=True):
        assert (got - expected).abs().max() < 0.03 * expected.abs().max()


def _measure_error(left: torch.Tensor, right: torch.Tensor) -> float:
    exact = left.double() @ right.double().T
    return float(((left @ right.T).double() - exact).norm() / exact.norm())


@pytest.fixture
def gpu_precision() -> None:
    """As a process begins; the suite may have chosen for its CPU."""
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_products_of_a_bfloat16_model_are_those_of_its_own_gradients(family: str, gpu_precision: None) -> None:
    """Within what bfloat16 rounds on the way back: the slow truth is autograd in float32 on the same weights."""
    model = build_family(family, dtype=torch.bfloat16).to("cuda")
    choose_float32_products(torch.device("cuda"), torch.bfloat16)
    got, _ = compute_fast_products(model, PAIRS)
    torch.set_float32_matmul_precision("highest")
    expected, _ = compute_fast_products(model.float(), PAIRS)
    scale = np.sqrt(expected.chosen_grad_sq_norm * expected.rejected_grad_sq_norm)
    assert np.abs(got.grad_inner_product - expected.grad_inner_product).max() < 0.05 * scale.max()
    np.testing.assert_allclose(got.chosen_grad_sq_norm, expected.chosen_grad_sq_norm, rtol=0.1)


def test_the_budget_follows_the_free_memory_of_the_device() -> None:
    model = build_family("llama", dtype=torch.bfloat16).to("cuda")
    budget = resolve_batch_tokens("auto", model, PAIRS)
    free, _ = torch.cuda.mem_get_info()
    assert 2048 < budget <= MOST_TOKENS_ELSEWHERE
    assert budget * estimate_bytes_per_token(model) <= free


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased"])
def test_a_watched_step_has_the_products_of_the_engine(family: str) -> None:
    model = build_family(family).to("cuda")
    with EverythingInFloat64():
        expected, _ = compute_fast_products(model, PAIRS)
        monitor = TheoryMonitor(model)
        batch = collate_pairs(PAIRS).to(torch.device("cuda"))
        chosen, rejected = monitor.compute_logps(model, batch).view(-1, 2).unbind(1)
        (-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))).mean().backward()
        products = monitor.read_products()
    np.testing.assert_allclose(products[:, 0], expected.grad_inner_product, rtol=1e-7)
    np.testing.assert_allclose(products[:, 1], expected.chosen_grad_sq_norm, rtol=1e-7)


def test_the_theory_table_is_that_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 12)
    frames = []
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / f"cache-{device}"))
        config = TheoryConfig(model=str(model), data=str(data), device=device, output=str(tmp_path / device))
        frames.append(run_theory(config).frame)
    for column in ("grad_inner_product", "chosen_grad_sq_norm", "u", "v"):
        np.testing.assert_allclose(frames[0][column], frames[1][column], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_an_adapter_on_a_4_bit_base_is_scored_and_trained(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 16)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    quantised = AutoModelForCausalLM.from_pretrained(model, quantization_config=settings, device_map={"": 0})
    folder = tmp_path / "four-bit"
    quantised.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    result = train(
        TrainConfig(
            model=str(folder),
            data=str(data),
            test_fraction=0.25,
            output=str(tmp_path / "run"),
            lora=True,
            max_steps=2,
            batch_size=4,
            device="cuda",
        )
    )
    assert result.folder.read_manifest()["status"] == "finished"


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


LAUNCHERS = {
    "DDP": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"],
    "FSDP2": ["-m", "accelerate.commands.launch", "--num_processes", "1", "--main_process_port", "0"],
}
"""Process groups of one, over NCCL: what can be launched where there is one GPU."""


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["DDP", "FSDP2"])
def test_a_launched_process_trains_and_differentiates_as_a_plain_one(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = save_tiny_model(tmp_path / "tiny"), write_pairs(tmp_path / "pairs.jsonl", 16)
    sharding = ["--config_file", str(ROOT / "examples" / "accelerate" / "fsdp2.yaml")] if launcher == "FSDP2" else []
    entry = str(ROOT / "tests" / "training" / "fsdp2_worker.py") if sharding else "-m"
    runs = {
        "train": ("--test-fraction", "0.25", "--max-steps", "2", "--batch-size", "4", "--learning-rate", "1e-3"),
        "theory-gap": ("--batch-tokens", "200"),
    }
    for command, options in runs.items():
        for name in ("plain", "launched"):
            monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / f"cache-{name}"))
            words = [command, "--model", str(model), "--data", str(data), *options]
            words += ["--output", str(tmp_path / name / command)]
            if name == "plain":
                outcome = call_dpotool(words)
                assert outcome.code == 0, outcome.err
                continue
            start = [*LAUNCHERS[launcher], *sharding, entry, *([] if sharding else ["dpotool"])]
            done = subprocess.run([sys.executable, *start, *words], capture_output=True, text=True, timeout=240)
            assert done.returncode == 0, done.stderr[-3000:]
            if command == "train" and sharding:
                n_spread, n_all = re.findall(r"spread: (\d+) of (\d+)", done.stderr)[0]
                assert n_spread == n_all != "0"
    plain, launched = (load_file(tmp_path / name / "train" / "model.safetensors") for name in ("plain", "launched"))
    assert plain.keys() == launched.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(launched[name], weight, rtol=1e-4, atol=1e-6)
    tables = [
        pd.read_parquet(next((tmp_path / name / "theory-gap" / "theory").glob("*.parquet")))
        for name in ("plain", "launched")
    ]
    for column in ("grad_inner_product", "chosen_grad_sq_norm", "u", "v"):
        np.testing.assert_allclose(tables[1][column], tables[0][column], rtol=1e-3, atol=1e-3)
