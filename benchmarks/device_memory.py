"""Peaks of commands on a GPU, weights included, beside the memory formula's values for the same model and batch."""

from __future__ import annotations

from collections.abc import Callable
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
from dpotool.likelihood.memory import ADAMW_BUFFERS, Plan, need_on_card
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.precision import choose_float32_products

ROW, COMPLETION = 512, 64
"""Tokens of a row, and of its completion: four pairs in rows of their own make 4,096 tokens."""
PAIRS_A_STEP = 4
N_STEPS = 3
Found = dict[str, float]


def make_equal_pairs(n_pairs: int, model: nn.Module, *, is_small: bool) -> list[TokenizedPair]:
    """Returns pairs of random tokens that all are as long as each other; a quarter as long for a miniature."""
    vocab = model.config.get_text_config().vocab_size
    row, completion = (ROW // 4, COMPLETION // 4) if is_small else (ROW, COMPLETION)
    draw = torch.Generator().manual_seed(0)

    def ids(n_tokens: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocab, (n_tokens,), generator=draw).tolist())

    prompts = [ids(row - completion) for _ in range(n_pairs)]
    return [TokenizedPair(place, ids_, ids(completion), ids(completion)) for place, ids_ in enumerate(prompts)]


def _compare(
    shape: str,
    device: torch.device,
    *,
    is_small: bool,
    dtype: torch.dtype,
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
    n_pairs: int,
    plan: Callable[[nn.Module, list[TokenizedPair]], Plan],
    run: Callable[[nn.Module, list[TokenizedPair]], object],
) -> Found:
    choose_float32_products(device, torch.bfloat16)
    free(device)
    with measuring_peak(device) as peak:
        model = prepare(build_model(shape, device, is_small=is_small, dtype=dtype))
        pairs = make_equal_pairs(n_pairs, model, is_small=is_small)
        planned = plan(model, pairs)
        formula = need_on_card(model, planned) / GIB
        run(model, pairs)
    found = {"tokens a batch": planned.n_tokens, "peak GiB": peak["peak GiB"], "formula GiB": formula}
    return found | {"formula / peak": formula / peak["peak GiB"]}


def _score(shape: str, device: torch.device, *, is_small: bool) -> Found:
    n_tokens = 16_384 if not is_small else 1024
    return _compare(
        shape,
        device,
        is_small=is_small,
        dtype=torch.bfloat16,
        n_pairs=48 if not is_small else 4,
        plan=lambda _model, _pairs: Plan("score", n_tokens=n_tokens),
        run=lambda model, pairs: compute_pair_logps(model, pairs, batch_tokens=n_tokens, layout="paired"),
    )


def _products(shape: str, device: torch.device, *, is_small: bool) -> Found:
    def run(model: nn.Module, pairs: list[TokenizedPair]) -> None:
        for _ in GradientEngine(model).iter_products(pairs, batch_tokens=10**9):
            pass

    return _compare(
        shape,
        device,
        is_small=is_small,
        dtype=torch.bfloat16,
        n_pairs=PAIRS_A_STEP,
        plan=lambda _, pairs: Plan("theory-gap", n_tokens=2 * len(pairs) * pairs[0].longest, keeps_layers=True),
        run=run,
    )


def _means(shape: str, device: torch.device, *, is_small: bool) -> Found:
    """Mean gradients of both halves, the direction of accuracy, and AdamW's first step for two shift factors."""

    def plan(_model: nn.Module, pairs: list[TokenizedPair]) -> Plan:
        n_tokens = 2 * PAIRS_A_STEP * pairs[0].longest
        return Plan("theory-gap", state_bytes=4 * ADAMW_BUFFERS, n_tokens=n_tokens, keeps_layers=True)

    def run(model: nn.Module, pairs: list[TokenizedPair]) -> None:
        logratios = (np.linspace(-1, 1, len(pairs)), np.linspace(1, -1, len(pairs)))
        compute_batch_products(
            model,
            pairs,
            GradientEngine(model).selection,
            logratios,
            gamma=1.0,
            adamw_shifts=(0.5, 1.0),
            batch_tokens=2 * PAIRS_A_STEP * pairs[0].longest,
        )

    return _compare(
        shape, device, is_small=is_small, dtype=torch.bfloat16, n_pairs=4 * PAIRS_A_STEP, plan=plan, run=run
    )


def _train(shape: str, device: torch.device, *, is_small: bool, has_adapter: bool) -> Found:
    def plan(model: nn.Module, pairs: list[TokenizedPair]) -> Plan:
        n_tokens = RowLayout.of(model).collate_step(pairs[:PAIRS_A_STEP]).input_ids.numel()
        return Plan("train", state_bytes=12, n_tokens=n_tokens, keeps_layers=True)

    def run(model: nn.Module, pairs: list[TokenizedPair]) -> None:
        setting = StepSetting(PAIRS_A_STEP, N_STEPS, is_mixed=False, recomputes=False)
        train_dpotool(model, build_tokenizer(64), pairs, setting)

    settings: dict[str, Any] = {"dtype": torch.bfloat16, "prepare": add_adapter} if has_adapter else {}
    return _compare(
        shape,
        device,
        is_small=is_small,
        n_pairs=PAIRS_A_STEP * N_STEPS,
        plan=plan,
        run=run,
        **({"dtype": torch.float32} | settings),
    )


def _train_adapter(shape: str, device: torch.device, *, is_small: bool) -> Found:
    return _train(shape, device, is_small=is_small, has_adapter=True)


def _train_all(shape: str, device: torch.device, *, is_small: bool) -> Found:
    return _train(shape, device, is_small=is_small, has_adapter=False)


COMMANDS: tuple[tuple[str, str, Callable[..., Found]], ...] = (
    ("0.5B", "train, all weights in float32", _train_all),
    ("0.5B", "theory-gap --dtype bfloat16", _means),
    ("0.5B", "theory-gap --pairs-only --dtype bfloat16", _products),
    ("8B", "theory-gap --pairs-only --dtype bfloat16", _products),
    ("8B", "train --lora --dtype bfloat16", _train_adapter),
    ("8B", "score", _score),
    ("0.5B", "score", _score),
)
"""Shape, command, and what measures it, most wanted first."""
