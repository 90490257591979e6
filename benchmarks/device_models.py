"""What `device.py` measures on: models of known shapes made on the device, pairs of known lengths, and its instruments.

Weights are random and never touch a disk: an 8B model is there in a second. Pairs are random token ids whose lengths
follow those of three well-known sets, always the same ones.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from harness import PeakMemory, Row
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config
from workloads import count_operations

from dpotool.data.pairs import TokenizedPair

GIB = 2**30
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
QWEN_HALF_B = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
SMALL = {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
SMALL_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "0.5B": (Qwen2Config, QWEN_HALF_B),
    "8B": (LlamaConfig, LLAMA_8B),
}
"""Qwen2.5-0.5B's and Llama-3-8B's."""


def build_model(shape: str, device: torch.device, *, is_small: bool, dtype: torch.dtype) -> nn.Module:
    """Returns a model of random weights on the device, in evaluation mode; a miniature of it for a rehearsal."""
    kind, settings = SHAPES[shape]
    if is_small:
        settings = {**settings, **SMALL, **SMALL_HEADS}
    config = kind(**settings, max_position_embeddings=8192, pad_token_id=0, eos_token_id=2)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


def quantise(model: nn.Module) -> int:
    """Puts the linear layers but the output layer into bitsandbytes' 4 bits (nf4), in place; returns how many.

    As transformers does on loading, but of weights that are on the device already.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    for name in linear:
        old = model.get_submodule(name)
        new = Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        new.weight = Params4bit(old.weight.data, requires_grad=False, quant_type="nf4").to(old.weight.device)
        new.bias = old.bias
        model.set_submodule(name, new)
    model.is_loaded_in_4bit = True  # peft asks
    return len(linear)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-uniform token counts, least and most."""

    prompt: tuple[int, int]
    completion: tuple[int, int]


DATA = {
    "TL;DR": Lengths((180, 480), (20, 60)),
    "HH": Lengths((30, 330), (12, 120)),
    "UltraFeedback": Lengths((40, 700), (100, 700)),
}
"""Means: TL;DR 306 and 36 tokens, as the benchmark on real pairs has them; HH 125 and 47; UltraFeedback 230 and 308."""


def draw_pairs(data: str, n_pairs: int, vocab: int) -> list[TokenizedPair]:
    """Returns pairs of random token ids with the lengths of a set of preferences; a quarter of them for a miniature."""
    shrink = 4 if vocab == SMALL["vocab_size"] else 1
    draw = random.Random(f"{data}-0")

    def ids(bounds: tuple[int, int]) -> tuple[int, ...]:
        n_tokens = round(math.exp(draw.uniform(*map(math.log, bounds)))) // shrink
        return tuple(draw.choices(range(3, vocab), k=n_tokens))

    lengths = DATA[data]
    return [
        TokenizedPair(place, ids(lengths.prompt), (*ids(lengths.completion), 2), (*ids(lengths.completion), 2))
        for place in range(n_pairs)
    ]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_once(run: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of one run, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def time_median(run: Callable[[], object], device: torch.device, *, rounds: int, warm_up: int = 1) -> float:
    """Returns the median seconds of some runs."""
    for _ in range(warm_up):
        run()
    return statistics.median(time_once(run, device) for _ in range(rounds))


@contextmanager
def measuring_peak(device: torch.device) -> Iterator[dict[str, float]]:
    """Fills in `peak GiB`: the most memory in use above what was in use at the start."""
    found: dict[str, float] = {}
    free(device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        synchronize(device)
        found["peak GiB"] = (torch.cuda.max_memory_allocated(device) - before) / GIB
    else:
        memory = PeakMemory()
        memory.restart()
        yield found
        found["peak GiB"] = memory.read_mib() / 1024


def measure_matmul_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Returns the operations per second of a square product of that size."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    return 2 * size**3 / time_median(lambda: left @ right, device, rounds=10, warm_up=3)


def describe_rates(device: torch.device, *, is_small: bool) -> Row:
    """Returns the device's rates of square products, in TFLOP/s, for the types that count here."""
    size = 256 if is_small else 8192
    rates: Row = {"bf16 TFLOP/s": measure_matmul_rate(device, torch.bfloat16, size) / 1e12}
    kept = torch.get_float32_matmul_precision()
    for name, precision in (("TF32", "high"), ("float32", "highest")):
        torch.set_float32_matmul_precision(precision)
        rates[f"{name} TFLOP/s"] = measure_matmul_rate(device, torch.float32, size // 2) / 1e12
    torch.set_float32_matmul_precision(kept)
    return rates


def compute_share(model: nn.Module, pairs: Sequence[TokenizedPair], seconds: float, rate: float) -> float:
    """Returns the share of a rate that scoring the pairs in that time reaches; each prompt token counts once."""
    return count_operations(model, pairs) / seconds / rate
