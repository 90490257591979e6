"""Chooses how torch computes on a device: float32 matrix products by the fastest hardware that does not change them.

On a GPU: a product of 16-bit factors that were widened to float32 (gradient products of a bfloat16 model are such) is
exact on TF32 units, which keep 11 bits of a factor and add up in float32, and several times faster; so they are used
for 16-bit models. A float32 model's products stay float32.

On a CPU `torch.set_float32_matmul_precision("medium")` sends float32 products to oneDNN. On CPUs with AVX-512 that is
true float32 and several times faster than the default on some of them; on CPUs with AMX the same switch rounds the
factors to bfloat16. So one small product is compared with float64, and the switch is left alone where it costs
accuracy. The choice rests on accuracy alone and not on a timing, so that it is the same in every run on a machine.

Attention on a GPU: torch prefers cuDNN on some cards, which plans anew for every length of row it has not met. Lengths
differ from batch to batch here, so cuDNN is left out; `benchmarks/device.py --only attention` measures the difference.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 1e-6
"""Of a 512 x 512 product; float32 has about 3e-7, bfloat16 about 2e-3."""

_CHOSEN_ON_GPU = ("high", "highest")
"""TF32 and float32, as torch calls them."""


@functools.cache
def use_fast_float32_on_cpu() -> str:
    """Chooses torch's float32 matmul precision for this process and returns it; another choice made elsewhere stays."""
    if _read_choice() != "highest":
        return _read_choice()
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


def choose_float32_products(device: torch.device, dtype: torch.dtype) -> str:
    """Chooses how float32 products are taken while a model of this type is at work on this device; returns the choice.

    A choice that other code made in this process is not overridden.
    """
    if device.type != "cuda":
        return use_fast_float32_on_cpu()
    if _read_choice() not in _CHOSEN_ON_GPU:
        return _read_choice()
    choice = _CHOSEN_ON_GPU[0 if dtype in (torch.bfloat16, torch.float16) else 1]
    torch.set_float32_matmul_precision(choice)
    logger.info(
        "float32 products on %s: %s", device, "TF32, exact for 16-bit factors" if choice == "high" else "float32"
    )
    return choice


def choose_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Chooses how torch computes while a model of this type is at work on this device, in this process."""
    choose_float32_products(device, dtype)
    choose_attention(device)


def choose_attention(device: torch.device) -> None:
    """Keeps torch's attention from cuDNN in this process, on a GPU; flash and memory-efficient kernels remain."""
    if device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled():
        torch.backends.cuda.enable_cudnn_sdp(False)
        logger.info("attention on %s: without cuDNN, which plans anew for every length of row", device)


def _read_choice() -> str:
    """Returns what float32 products are taken in, as torch calls it.

    Where other code chose by `torch.backends.fp32_precision`, as the `tf32` of transformers' trainers does, torch
    refuses to answer in its older words; then what it says of CUDA in the newer ones.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return f"by backend ({torch.backends.cuda.matmul.fp32_precision})"


@contextmanager
def in_full_float32() -> Iterator[None]:
    """Takes float32 products in float32 for a while, whatever was chosen, by us or by a caller who allows TF32.

    For checks that two ways of computing are one: TF32 rounds their products apart by 1e-3.
    """
    every: Any = torch.backends
    backends = [every.cuda.matmul, every.mkldnn.matmul]
    chosen = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, choice in zip(backends, chosen, strict=True):
            backend.fp32_precision = choice
