"""Lets float32 matrix products on a CPU use the faster of torch's two libraries, where that keeps them float32.

`torch.set_float32_matmul_precision("medium")` sends float32 products to oneDNN. On CPUs with AVX-512 that is true
float32 and several times faster than the default on some of them; on CPUs with AMX the same switch rounds the factors
to bfloat16. So one small product is compared with float64, and the switch is left alone where it costs accuracy. The
choice rests on accuracy alone and not on a timing, so that it is the same in every run on a machine.
"""

from __future__ import annotations

import functools
import logging

import torch

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 1e-6
"""Of a 512 x 512 product; float32 has about 3e-7, bfloat16 about 2e-3."""


@functools.cache
def use_fast_float32_on_cpu() -> str:
    """Chooses torch's float32 matmul precision for this process and returns it; a choice made by others stands."""
    if torch.get_float32_matmul_precision() != "highest":
        return torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = measure_matmul_error()
    if error > MAX_RELATIVE_ERROR:
        torch.set_float32_matmul_precision("highest")
    logger.info("float32 matmul precision: %s (error %.1e)", torch.get_float32_matmul_precision(), error)
    return torch.get_float32_matmul_precision()


def measure_matmul_error() -> float:
    """Returns the relative error (Frobenius norm) of a float32 product under the present setting, against float64."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).norm() / exact.norm())
