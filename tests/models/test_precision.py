"""The switch to the faster float32 library is only taken where it stays float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dpotool.models import precision


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
