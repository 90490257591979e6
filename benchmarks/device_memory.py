"""Peaks of commands on a GPU, weights included, beside the memory formula's values for the same model and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from device_models import GIB, build_model, free, measuring_peak
from device_training import StepSetting, add_adapter, train_dpotool
from torch import nn
from workloads import build_tokenizer

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.batch_products import compute_batch_products
from dpotool.gradients.engine import GradientEngine
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.memory import (
    ADAMW_BUFFERS,
    SHAPES,
    Plan,
    Shape,
    count_adapter,
    measure_shape,
    predict_memory,
)
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.precision import choose_float32_products

ROW, COMPLETION = 512, 64
"""Tokens of a row, and of its completion: four pairs in rows of their own make 4,096 tokens."""
PAIRS_A_STEP = 4
N_ADAPTER = 41_943_040
"""Weights of the adapter of `device_training.LORA` on Llama-3-8B."""


def make_equal_pairs(n_pairs: int, model: nn.Module, *, is_small: bool) -> list[TokenizedPair]:
    """Returns pairs of random tokens that all are as long as each other; a quarter as long for a miniature."""
    vocab = model.config.get_text_config().vocab_size
    row, completion = (ROW // 4, COMPLETION // 4) if is_small else (ROW, COMPLETION)
    draw = torch.Generator().manual_seed(0)

    def ids(n_tokens: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocab, (n_tokens,), generator=draw).tolist())

    prompts = [ids(row - completion) for _ in range(n_pairs)]
    return [TokenizedPair(place, ids_, ids(completion), ids(completion)) for place, ids_ in enumerate(prompts)]


def predict_peak(command: str, shape: Shape, n_tokens: int, n_adapter: int = 0) -> float:
    """Returns GiB by the formula."""
    dtype = torch.float32 if command == FULL else torch.bfloat16
    plan = replace(PLANS[command], n_tokens=n_tokens, weight_bytes=dtype.itemsize, n_adapter=n_adapter)
    return sum(predict_memory(shape, plan).values()) / GIB


def add_formula(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a measured row with what today's formula says beside it."""
    shape = next(shape for shape in SHAPES if shape.name == row["model"])
    n_adapter = N_ADAPTER if row["command"] == ADAPTER else 0
    formula = predict_peak(row["command"], shape, row["tokens a batch"], n_adapter)
    return row | {"formula GiB": formula, "formula / peak": formula / row["peak GiB"]}


def measure_peak(shape: str, command: str, device: torch.device, *, is_small: bool) -> dict[str, float]:
    """Returns the tokens of a batch and the peak with the model's weights (GiB); of a miniature, the formula too."""
    free(device)
    dtype = torch.float32 if command == FULL else torch.bfloat16
    choose_float32_products(device, dtype)
    n_pairs, run = RUNS[command]
    with measuring_peak(device) as peak:
        model = build_model(shape, device, is_small=is_small, dtype=dtype)
        model = add_adapter(model) if command == ADAPTER else model
        pairs = make_equal_pairs(n_pairs, model, is_small=is_small)
        n_tokens = run(model, pairs)
    found = {"tokens a batch": n_tokens, "peak GiB": peak["peak GiB"]}
    if is_small:  # whose shape is none of those that `add_formula` knows
        small, n_adapter = measure_shape(model), count_adapter(model)
        assert small is not None
        found["formula GiB"] = predict_peak(command, small, n_tokens, n_adapter)
    return found


def _score(model: nn.Module, pairs: list[TokenizedPair]) -> int:
    n_tokens = len(pairs) // 3 * 2 * pairs[0].longest
    compute_pair_logps(model, pairs, batch_tokens=n_tokens, layout="paired")
    return n_tokens


def _take_products(model: nn.Module, pairs: list[TokenizedPair]) -> int:
    for _ in GradientEngine(model).iter_products(pairs, batch_tokens=10**9):
        pass
    return 2 * len(pairs) * pairs[0].longest


def _take_means(model: nn.Module, pairs: list[TokenizedPair]) -> int:
    """Mean gradients of both halves, the direction of accuracy, and AdamW's first step for two shift factors."""
    n_tokens = 2 * PAIRS_A_STEP * pairs[0].longest
    logratios = (np.linspace(-1, 1, len(pairs)), np.linspace(1, -1, len(pairs)))
    selection = GradientEngine(model).selection
    shifts = {"gamma": 1.0, "adamw_shifts": (0.5, 1.0)}
    compute_batch_products(model, pairs, selection, logratios, **shifts, batch_tokens=n_tokens)  # type: ignore[arg-type]
    return n_tokens


def _train(model: nn.Module, pairs: list[TokenizedPair]) -> int:
    setting = StepSetting(PAIRS_A_STEP, len(pairs) // PAIRS_A_STEP, is_mixed=False, recomputes=False)
    train_dpotool(model, build_tokenizer(64), pairs, setting)
    return RowLayout.of(model).collate_step(pairs[:PAIRS_A_STEP]).input_ids.numel()


FULL = "train, all weights in float32"
ADAPTER = "train --lora --dtype bfloat16"
RUNS: dict[str, tuple[int, Callable[[nn.Module, list[TokenizedPair]], int]]] = {
    FULL: (3 * PAIRS_A_STEP, _train),
    ADAPTER: (3 * PAIRS_A_STEP, _train),
    "theory-gap --dtype bfloat16": (4 * PAIRS_A_STEP, _take_means),
    "theory-gap --pairs-only --dtype bfloat16": (PAIRS_A_STEP, _take_products),
    "score": (48, _score),
}
"""Command -> pairs, and what runs it on them and returns the padded tokens of a batch."""
PLANS = {
    FULL: Plan("train", state_bytes=12, keeps_layers=True),
    ADAPTER: Plan("train", keeps_layers=True, is_trained=False),
    "theory-gap --dtype bfloat16": Plan("theory-gap", state_bytes=4 * ADAMW_BUFFERS, keeps_layers=True),
    "theory-gap --pairs-only --dtype bfloat16": Plan("theory-gap", keeps_layers=True),
    "score": Plan("score"),
}
"""Command -> what the formula is told of it."""
COMMANDS = (
    ("0.5B", FULL),
    ("0.5B", "theory-gap --dtype bfloat16"),
    ("0.5B", "theory-gap --pairs-only --dtype bfloat16"),
    ("8B", "theory-gap --pairs-only --dtype bfloat16"),
    ("8B", ADAPTER),
    ("8B", "score"),
    ("0.5B", "score"),
)
"""Shape and command, most wanted first."""
