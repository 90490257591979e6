"""The switch to the faster float32 library is only taken where it stays float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dpotool.models import precision

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    precision.use_fast_float32_on_cpu.cache_clear()
    yield
    precision.use_fast_float32_on_cpu.cache_clear()
    torch.set_float32_matmul_precision(kept)


def test_the_choice_is_true_float32() -> None:
    precision.use_fast_float32_on_cpu()
    assert precision.measure_matmul_error() < precision.MAX_RELATIVE_ERROR


def test_a_switch_that_rounds_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with AMX, where 'medium' means bfloat16 factors."""
    monkeypatch.setattr(precision, "measure_matmul_error", lambda: 2e-3)
    assert precision.use_fast_float32_on_cpu() == "highest"
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_choice_made_by_others_stands() -> None:
    torch.set_float32_matmul_precision("high")
    assert precision.use_fast_float32_on_cpu() == "high"


@pytest.fixture
def tf32_by_backend() -> Iterator[None]:
    backend: Any = torch.backends.cuda.matmul
    kept = backend.fp32_precision
    backend.fp32_precision = "tf32"
    yield
    backend.fp32_precision = kept


def test_a_choice_by_the_newer_words_of_torch_stands(tf32_by_backend: None) -> None:
    """As the `tf32` of transformers' trainers makes it; torch then raises where it is asked in its older words."""
    with pytest.raises(RuntimeError, match="mix of the legacy and new"):
        torch.get_float32_matmul_precision()
    for choose in (precision.use_fast_float32_on_cpu, lambda: precision.choose_float32_products(GPU, torch.bfloat16)):
        assert choose() == "by backend (tf32)"


@pytest.mark.parametrize("chosen", ["high", "highest"])
def test_full_float32_lasts_as_long_as_it_is_asked_for(chosen: str) -> None:
    torch.set_float32_matmul_precision(chosen)
    before = torch.backends.cuda.matmul.fp32_precision
    assert (before == "tf32") == (chosen == "high")
    with precision.in_full_float32():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert torch.get_float32_matmul_precision() == chosen


def test_attention_on_a_gpu_leaves_cudnn_out_and_on_a_cpu_nothing_changes() -> None:
    kept = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        precision.choose_attention(torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        precision.choose_attention(GPU)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(kept)
