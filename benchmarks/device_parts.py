"""The parts of `device.py`: each yields rows of results, most valuable first, and stops when its time is over."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import patch

import numpy as np
import torch
from device_attention import ATTENTIONS, list_row_groups, run_dense
from device_memory import COMMANDS, measure_peak
from device_models import (
    DATA,
    build_model,
    compute_share,
    describe_rates,
    draw_pairs,
    free,
    measure_matmul_rate,
    measuring_peak,
    quantise,
    time_median,
    time_once,
)
from device_training import StepSetting, add_adapter, train_and_restore, train_dpotool, train_trl
from gradient_methods import run_engine, run_monitored_step, run_training_step, run_two_gradients
from harness import Row, append_row
from scoring_methods import DPOTOOL, LOOP, SCORERS, TRL, Score
from torch import nn
from transformers import PreTrainedTokenizerBase
from workloads import build_tokenizer

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood import part_attention
from dpotool.likelihood.batch import collate_shared
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.layout import RowLayout
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.precision import choose_attention, choose_float32_products, choose_kernels
from dpotool.settings.shared import AUTO

T = TypeVar("T")
Gradients = Callable[[nn.Module, Sequence[TokenizedPair]], object]
MAX_NATS_PER_TOKEN = 0.05
"""Mean difference a token allowed between two ways in bfloat16; in float32 sums agree to 1e-5 of their size."""
PAIRED = "dpotool, a row each"
MASKED = "dpotool, with the dense mask"
PAIRS_A_STEP = {"TL;DR": 4, "HH": 8, "UltraFeedback": 2}
"""Whose gradients are timed together at 8B: 3,000 to 5,000 padded tokens; four times as many at 0.5B."""

BATCH_SIZES = (4096, 8192, 16_384)


@dataclass(slots=True)
class Bench:
    """Where a part runs, how long it may, and where its rows and failures go."""

    part: str
    device: torch.device
    is_small: bool
    deadline: float
    rows: Path
    errors: Path

    def left(self) -> float:
        """Returns the seconds left to this part."""
        return self.deadline - time.time()

    def emit(self, row: Row) -> None:
        append_row(self.rows, {"part": self.part, **row})

    def attempt(self, what: str, run: Callable[[], T], *, needs: float = 0.0) -> T | None:
        """Runs something; a failure is a row and a traceback in a file, and never stops what comes after."""
        if self.left() < needs:
            self.emit({"what": what, "left out": f"no time: {self.left():.0f} s left, {needs:.0f} s needed"})
            return None
        try:
            return run()
        except ModuleNotFoundError as error:
            self.emit({"what": what, "left out": f"the package {error.name} is not installed"})
        except Exception as error:  # whatever it is, the rest is still worth measuring
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.emit({"what": what, "failed": f"{type(error).__name__}: {text[:300]}"})
            with self.errors.open("a", encoding="utf-8") as file:
                file.write(f"== {self.part}: {what}\n{traceback.format_exc()}\n")
            if "CUDA error" in text:  # the process can do nothing more with its device
                os._exit(3)
        free(self.device)
        return None

    def scale(self, full: int, small: int) -> int:
        return small if self.is_small else full


def run_rates(bench: Bench) -> None:
    """What the device is, and its rates of matrix products."""
    row: Row = {"device": str(bench.device)}
    if bench.device.type == "cuda":
        about = torch.cuda.get_device_properties(bench.device)
        row = {"device": about.name, "memory GiB": about.total_memory / 2**30, "CUDA": torch.version.cuda}
    rates = bench.attempt("rates", lambda: describe_rates(bench.device, is_small=bench.is_small))
    bench.emit({**row, "torch": torch.__version__, **(rates or {})})


def run_scoring(bench: Bench, shape: str) -> None:
    """Scoring: equal numbers first, then pairs a second, memory, and the share of the device's rate."""
    tokenizer = build_tokenizer(64)  # trainers want one; all are given token ids
    if shape == "0.5B":
        bench.attempt(f"{shape}: equal numbers in float32", lambda: _check_float32(bench, shape, tokenizer), needs=20)
    model = build_model(shape, bench.device, is_small=bench.is_small, dtype=torch.bfloat16)
    choose_kernels(bench.device, torch.bfloat16)
    rate = measure_matmul_rate(bench.device, torch.bfloat16, bench.scale(8192, 256))
    for data in DATA:
        pairs = _draw_scored(bench, shape, data, model)
        about: Row = {"model": shape, "data": data, "pairs": len(pairs)}
        ours: dict[str, Any] = {}
        for method in (DPOTOOL, TRL, MASKED, PAIRED, *([LOOP] if data == "TL;DR" else [])):
            found = bench.attempt(
                f"{shape}, {data}: {method}",
                lambda method=method, pairs=pairs: _time_scoring(bench, method, model, tokenizer, pairs),  # type: ignore[misc]
                needs=8,
            )
            restore_forward(model)
            if found is None:
                continue
            ours = ours or found
            bench.emit(about | _describe_scoring(method, found, ours, model, pairs, rate))
            free(bench.device)


def _describe_scoring(
    method: str,
    found: dict[str, Any],
    ours: dict[str, Any],
    model: nn.Module,
    pairs: Sequence[TokenizedPair],
    rate: float,
) -> Row:
    tokens = np.array([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in pairs])
    difference = np.abs(found["logps"] - ours["logps"]) / tokens
    if difference.mean() > MAX_NATS_PER_TOKEN:
        raise AssertionError(f"{method}: {difference.mean():.3g} nats a token off on average")
    return {
        "method": method,
        "batch": found["batch"] or "by memory",
        "pairs/s": len(pairs) / found["seconds"],
        "dpotool is faster by": found["seconds"] / ours["seconds"],
        "peak GiB": found["peak GiB"],
        "share of bf16 rate": compute_share(model, pairs, found["seconds"], rate),
        "nats/token off": float(difference.mean()),
    }


def _draw_scored(bench: Bench, shape: str, data: str, model: nn.Module) -> list[TokenizedPair]:
    """Returns so many pairs that scoring them takes some seconds."""
    n_pairs = bench.scale({"0.5B": 512, "8B": 96}[shape], 6) // (3 if data == "UltraFeedback" else 1)
    return draw_pairs(data, n_pairs, model.config.vocab_size)


def run_batch_sizes(bench: Bench) -> None:
    """Scoring with several budgets of tokens a batch: what a larger one gains and takes."""
    choose_kernels(bench.device, torch.bfloat16)
    for shape in ("8B", "0.5B"):
        model = build_model(shape, bench.device, is_small=bench.is_small, dtype=torch.bfloat16)
        for data in ("TL;DR", "UltraFeedback", "HH"):
            pairs = _draw_scored(bench, shape, data, model)
            for n_tokens in BATCH_SIZES:
                about: Row = {"model": shape, "data": data, "pairs": len(pairs), "tokens a batch": n_tokens}
                bench.attempt(
                    f"{shape}, {data}: {n_tokens} tokens a batch",
                    partial(_time_batch_size, bench, about, model, pairs),
                    needs=bench.scale(5, 1),
                )
        free(bench.device)


def _time_batch_size(bench: Bench, about: Row, model: nn.Module, pairs: Sequence[TokenizedPair]) -> None:
    size = cast(int, about["tokens a batch"])

    def score() -> object:
        return compute_pair_logps(model, pairs, batch_tokens=size)

    with measuring_peak(bench.device) as peak:
        seconds = time_median(score, bench.device, rounds=2)
    bench.emit(about | {"pairs/s": len(pairs) / seconds, **peak})


def _time_scoring(
    bench: Bench, method: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair]
) -> dict[str, Any]:
    score = _build_scorer(method, model, tokenizer, pairs)
    size = 0 if method in (DPOTOOL, MASKED, PAIRED) else _tune(bench, score, len(pairs))
    score(min(len(pairs), 32), size)  # kernels chosen, memory taken
    seconds, logps = [], None
    for _ in range(2):
        with measuring_peak(bench.device) as peak:
            start = time.perf_counter()
            logps = score(len(pairs), size)
            seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "logps": logps, "batch": size, **peak}


def _build_scorer(
    method: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TokenizedPair]
) -> Score:
    if method in (PAIRED, MASKED):
        layout = "paired" if method == PAIRED else AUTO
        no_kernel = patch.object(part_attention, "is_trusted", lambda _device, _dtype: False)

        def score(n_pairs: int, _batch_size: int) -> np.ndarray:
            with no_kernel:  # which rows of their own do without in any case
                found = compute_pair_logps(model, pairs[:n_pairs], batch_tokens=AUTO, layout=layout)
            return np.stack([found.chosen, found.rejected], axis=1)

        return score
    if method == TRL:
        hash_no_weights()
    return SCORERS[method](model, tokenizer, pairs)


def _tune(bench: Bench, score: Score, n_pairs: int) -> int:
    """Returns the batch size with the best rate: doubled as long as it helps and memory holds it."""
    best, best_rate, size = 1, 0.0, bench.scale(8, 1)
    while size <= min(n_pairs, 128) and bench.left() > 10:
        n_tried = min(n_pairs, max(size, 16))
        try:
            score(n_tried, size)
            rate = n_tried / time_once(lambda size=size, n=n_tried: score(n, size), bench.device)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            free(bench.device)
            break
        if rate < best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best


def _check_float32(bench: Bench, shape: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises AssertionError where two ways differ in float32 by more than rounding."""
    choose_float32_products(bench.device, torch.float32)
    model = build_model(shape, bench.device, is_small=bench.is_small, dtype=torch.float32)
    for data in DATA:
        pairs = draw_pairs(data, 4, model.config.vocab_size)
        expected = None
        for method in (DPOTOOL, PAIRED, TRL, LOOP):
            got = bench.attempt(
                f"{shape}, {data}, float32: {method}",
                lambda method=method, pairs=pairs: _build_scorer(method, model, tokenizer, pairs)(len(pairs), 2),  # type: ignore[misc]
            )
            restore_forward(model)
            if got is None:
                continue
            expected = got if expected is None else expected
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3, err_msg=f"{data}: {method}")
    bench.emit({"what": f"{shape}: sums in float32 agree to 1e-5"})
    del model
    free(bench.device)


def restore_forward(model: nn.Module) -> None:
    """Takes away what a trainer has put in front of a model's own forward."""
    model.__dict__.pop("forward", None)


def hash_no_weights() -> None:
    """Lets TRL name its cache by chance and not by a hash of all weights, which is nobody's time here."""
    import trl.trainer.dpo_trainer as dpo_trainer

    dpo_trainer.hash_module = lambda _model: uuid.uuid4().hex


def run_training(bench: Bench, shape: str) -> None:
    """DPO steps: the same losses first, then seconds a step and memory. LoRA at 8B, all weights at 0.5B."""
    tokenizer = build_tokenizer(64)  # trainers want one; all are given token ids
    has_adapter = shape == "8B"
    dtype = torch.bfloat16 if has_adapter else torch.float32
    choose_kernels(bench.device, dtype)
    model = build_model(shape, bench.device, is_small=bench.is_small, dtype=dtype)
    if has_adapter:
        model = add_adapter(model)
    about = f"{shape}, {'LoRA' if has_adapter else 'all weights'}"
    size, n_steps = bench.scale(4 if has_adapter else 8, 2), bench.scale(8, 3)
    for data, factor, recomputes in (("TL;DR", 1, False), ("TL;DR", 4, True), ("UltraFeedback", 2, True)):
        setting = StepSetting(size * factor, n_steps, is_mixed=bench.device.type == "cuda", recomputes=recomputes)
        train_both(bench, about, model, tokenizer, data, setting)


def train_both(
    bench: Bench, about: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, data: str, setting: StepSetting
) -> None:
    """Steps of dpotool and of TRL on the same pairs from the same weights: a row for each."""
    pairs = draw_pairs(data, setting.batch_size * setting.n_steps, model.config.get_text_config().vocab_size)
    found = {}
    for method, train in ((DPOTOOL, train_dpotool), (TRL, train_trl)):
        if method == TRL:
            bench.attempt("TRL's hash", hash_no_weights)
        steps = bench.attempt(
            f"{about}, {data}, {setting}: {method}",
            lambda train=train: train_and_restore(train, model, tokenizer, pairs, setting),  # type: ignore[misc]
            needs=12 if not bench.is_small else 2,
        )
        if steps is not None:
            found[method] = steps
    for method, steps in found.items():
        ours = found.get(DPOTOOL, steps)
        bench.emit(
            {
                "model": about,
                "data": data,
                "pairs a step": setting.batch_size,
                "recomputed activations": "yes" if setting.recomputes else "no",
                "method": method,
                "pairs/s": setting.batch_size / steps.seconds_a_step,
                "dpotool is faster by": steps.seconds_a_step / ours.seconds_a_step,
                "peak GiB": steps.peak_gib,
                "last loss": steps.losses[-1],
                "largest difference of losses": max(abs(a - b) for a, b in zip(steps.losses, ours.losses, strict=True)),
            }
        )


def run_few_bits(bench: Bench) -> None:
    """An 8B base in 4 bits under a LoRA adapter: scoring, steps, and gradient products of the adapter's weights."""
    tokenizer = build_tokenizer(64)
    choose_kernels(bench.device, torch.bfloat16)
    model = build_model("8B", bench.device, is_small=bench.is_small, dtype=torch.bfloat16)
    n_whole = sum(weight.nbytes for weight in model.parameters())
    if bench.attempt("8B in 4 bits", lambda: quantise(model)) is None:
        return
    free(bench.device)
    n_now = sum(weight.nbytes for weight in model.parameters())
    bench.emit({"what": "8B in 4 bits", "weights GiB": n_now / 2**30, "in bfloat16 GiB": n_whole / 2**30})
    rate = measure_matmul_rate(bench.device, torch.bfloat16, bench.scale(8192, 256))
    pairs = draw_pairs("TL;DR", bench.scale(96, 6), model.config.vocab_size)
    found = bench.attempt("4 bits: scoring", lambda: _time_scoring(bench, DPOTOOL, model, tokenizer, pairs), needs=8)
    if found is not None:
        about: Row = {"model": "8B in 4 bits", "data": "TL;DR", "pairs": len(pairs)}
        bench.emit(about | _describe_scoring(DPOTOOL, found, found, model, pairs, rate))
    model = add_adapter(model)
    time_products(bench, "8B in 4 bits, adapter's weights", model, "TL;DR", {"dpotool, products": run_engine})
    setting = StepSetting(bench.scale(16, 2), bench.scale(5, 3), is_mixed=bench.device.type == "cuda", recomputes=True)
    train_both(bench, "8B in 4 bits, LoRA", model, tokenizer, "TL;DR", setting)


def run_theory(bench: Bench, shape: str) -> None:
    """Gradient products of all weights against a training step's forward and backward pass, and against autograd."""
    if shape == "0.5B":
        bench.attempt("0.5B: products equal autograd's in float32", lambda: _check_products(bench, shape), needs=15)
    choose_kernels(bench.device, torch.bfloat16)
    model = build_model(shape, bench.device, is_small=bench.is_small, dtype=torch.bfloat16)
    methods: dict[str, Gradients] = {
        "training step, shared rows": _run_shared_step,
        "dpotool, products": run_engine,
        "training step, monitored": run_monitored_step,
    }
    for data in ("TL;DR", "HH", "UltraFeedback"):
        time_products(bench, shape, model, data, methods)


def time_products(bench: Bench, about: str, model: nn.Module, data: str, methods: Mapping[str, Gradients]) -> None:
    """A row for each way of taking gradients of a batch of pairs; times are also given in those of the first way."""
    n_pairs = bench.scale(PAIRS_A_STEP[data] * (4 if about == "0.5B" else 1), 2)
    pairs = draw_pairs(data, n_pairs, model.config.get_text_config().vocab_size)
    of_step = None
    for name, run in {"training step": run_training_step, **methods}.items():
        found = bench.attempt(
            f"{about}, {data}: {name}",
            lambda run=run: _time_gradients(bench, model, pairs, run),  # type: ignore[misc]
            needs=5,
        )
        model.zero_grad(set_to_none=True)
        free(bench.device)
        if found is None:
            continue
        of_step = of_step or found["seconds"]
        bench.emit(
            {
                "model": about,
                "data": data,
                "pairs": n_pairs,
                "method": name,
                "pairs/s": n_pairs / found["seconds"],
                "time / training step": found["seconds"] / of_step,
                "peak GiB": found["peak GiB"],
            }
        )


def _time_gradients(
    bench: Bench, model: nn.Module, pairs: Sequence[TokenizedPair], run: Callable[..., object]
) -> dict[str, float]:
    seconds = time_median(lambda: run(model, pairs), bench.device, rounds=bench.scale(3, 1))
    with measuring_peak(bench.device) as peak:
        run(model, pairs)
    return {"seconds": seconds, **peak}


def _run_shared_step(model: nn.Module, pairs: Sequence[TokenizedPair]) -> None:
    """One forward and backward pass as dpotool trains, chosen and rejected in a row."""
    batch = RowLayout.of(model).collate_step(pairs).to(next(model.parameters()).device)
    chosen, rejected = compute_completion_logps(model, batch).view(-1, 2).unbind(1)
    (-nn.functional.logsigmoid(0.1 * (chosen - rejected))).mean().backward()
    model.zero_grad(set_to_none=True)


def _check_products(bench: Bench, shape: str) -> None:
    """Raises AssertionError where products differ from autograd's, pair by pair, by more than float32 rounding."""
    choose_float32_products(bench.device, torch.float32)
    model = build_model(shape, bench.device, is_small=bench.is_small, dtype=torch.float32)
    pairs = draw_pairs("TL;DR", 2, model.config.vocab_size)
    expected, got = run_two_gradients(model, pairs), run_engine(model, pairs)
    scale = np.sqrt(expected[:, 1:2] * expected[:, 2:3])
    error = float((np.abs(got - expected) / scale).max())
    coarse = model.to(torch.bfloat16)
    choose_float32_products(bench.device, torch.bfloat16)
    of_bf16 = float((np.abs(run_engine(coarse, pairs) - expected) / scale).max())
    bench.emit({"what": f"{shape}: products against autograd in float32", "error": error, "error of bf16": of_bf16})
    assert error < 1e-3, error
    del model, coarse
    free(bench.device)


def run_memory(bench: Bench) -> None:
    """Peaks of commands, weights included; `device.py --write` puts beside them what the memory formula says."""
    for shape, command in COMMANDS:
        found = bench.attempt(
            f"{shape}: {command}",
            lambda shape=shape, command=command: measure_peak(shape, command, bench.device, is_small=bench.is_small),  # type: ignore[misc]
            needs=6 if not bench.is_small else 1,
        )
        if found is not None:
            bench.emit({"model": shape, "command": command, **found})
        free(bench.device)


def run_attention(bench: Bench) -> None:
    """Attention of shared rows: dense mask, FlexAttention, part by part; beside causal rows of their own."""
    heads = (32, 8, 128) if not bench.is_small else (4, 2, 16)
    choose_attention(bench.device)
    bench.attempt("lengths", lambda: _time_new_lengths(bench, heads), needs=5 if not bench.is_small else 1)
    for data, groups in list_row_groups(bench.scale(16384, 512)).items():
        times: dict[str, float] = {}
        bench.attempt(f"{data}: equal numbers", lambda groups=groups: _compare_attention(bench, groups, heads))  # type: ignore[misc]
        for name, build in ATTENTIONS.items():
            for backward in (False, True):
                what = f"{name}, {'forward and backward' if backward else 'forward'}"
                seconds = bench.attempt(
                    f"{data}: {what}",
                    lambda build=build, groups=groups, backward=backward: time_median(  # type: ignore[misc]
                        build(groups, heads, bench.device, backward=backward), bench.device, rounds=5, warm_up=2
                    ),
                    needs=(15 if name == "FlexAttention" else 3) if not bench.is_small else 1,
                )
                if seconds is not None:
                    times[what] = 1e3 * seconds
        bench.emit({"rows of": data, **{f"{name} (ms)": value for name, value in times.items()}})


def _time_new_lengths(bench: Bench, heads: tuple[int, int, int]) -> None:
    """Attention of shared rows forward and backward, of a length met before and of a new one, with and without cuDNN.

    torch asks cuDNN for a plan for every length of row. Emits milliseconds.
    """
    pairs = next(iter(list_row_groups(bench.scale(4096, 512)).values()))
    groups = [pairs[place:] for place in range(min(4, len(pairs)))]
    row: Row = {"rows of": "TL;DR, with and without cuDNN"}
    kept = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        for name, has_cudnn in (("without", False), ("with", True)):
            torch.backends.cuda.enable_cudnn_sdp(has_cudnn)
            runs = [run_dense(group, heads, bench.device, backward=True) for group in groups]
            for again in ("new length", "same length"):
                times = [1e3 * time_once(run, bench.device) for run in runs]
                row |= {f"{name}, {again} (ms)": statistics.median(times[1:] or times)}
    finally:
        torch.backends.cuda.enable_cudnn_sdp(kept)
    bench.emit(row)


def _compare_attention(bench: Bench, pairs: Sequence[TokenizedPair], heads: tuple[int, int, int]) -> None:
    """Raises AssertionError where a way makes something else of the same states than the dense mask, beside padding."""
    is_real = (collate_shared(pairs).block_ids >= 0).to(bench.device)[:, None, :, None]
    names = ("dense mask", "FlexAttention", *(["by parts"] if bench.device.type == "cuda" else []))
    expected, *others = (ATTENTIONS[name](pairs, heads, bench.device, backward=False)() for name in names)
    for got in others:
        torch.testing.assert_close(got * is_real, expected * is_real, rtol=0.05, atol=0.02)


def run_study(bench: Bench) -> None:
    """A short real study with the built-in model and pairs: a sweep of lambdas on this device."""
    from dpotool.sweep.config import SweepConfig
    from dpotool.sweep.run import sweep

    with tempfile.TemporaryDirectory() as folder:
        config = SweepConfig(
            output=f"{folder}/sweep",
            device=str(bench.device),
            lambdas="0.5,0.9,1.0",
            max_steps=bench.scale(0, 2) or None,
            limit=bench.scale(0, 32) or None,
        )
        start = time.time()
        result = sweep(config)
        seconds = time.time() - start
    for row in json.loads(result.table.to_json(orient="records")):
        bench.emit({"study of": "the built-in model", "seconds of all": seconds, **row})


PARTS: dict[str, tuple[Callable[[Bench], None], float, float]] = {
    "rates": (run_rates, 5, 40),
    "scoring 8B": (lambda bench: run_scoring(bench, "8B"), 30, 100),
    "training 8B": (lambda bench: run_training(bench, "8B"), 30, 120),
    "theory 8B": (lambda bench: run_theory(bench, "8B"), 25, 60),
    "4 bits": (run_few_bits, 25, 80),
    "memory": (run_memory, 20, 60),
    "scoring 0.5B": (lambda bench: run_scoring(bench, "0.5B"), 20, 60),
    "training 0.5B": (lambda bench: run_training(bench, "0.5B"), 20, 90),
    "theory 0.5B": (lambda bench: run_theory(bench, "0.5B"), 20, 40),
    "attention": (run_attention, 20, 50),
    "batch sizes": (run_batch_sizes, 20, 60),
    "study": (run_study, 30, 90),
}
"""Name -> what it does, the least seconds it is worth starting with, the most it may take."""
