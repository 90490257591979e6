"""Where the time of scoring and of a training step goes, and the least time that their operations need.

    python benchmarks/floor.py --model PATH pairs.jsonl ... --write      # into docs/performance.md

The floor is the operations that the result needs, each prompt token counted once (`workloads.count_operations`), at the
rate that the model's own layers reach as plain products, measured in the same process. A training step needs three
times as many. Shares are torch's profile of one run after a first one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import DOCS, Row, describe_machine, load_model, name_of
from layouts import score, step
from page import format_table, replace_section
from torch import nn
from torch.profiler import ProfilerActivity, profile
from workloads import count_operations, load_sample

from dpotool.data.pairs import TokenizedPair
from dpotool.models.loading import load_tokenizer
from dpotool.models.precision import use_fast_float32_on_cpu
from dpotool.settings.shared import AUTO

PASSES = {"scoring": 1, "training step": 3}
"""Forward; forward, and backward to activations and to weights."""
PRODUCTS = ("aten::mm", "aten::addmm")


def measure_shares(work: Callable[[], object]) -> dict[str, float]:
    """Returns the shares of a run's time in linear layers, in attention and elsewhere."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        work()
    events = record.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    attention = sum(event.self_cpu_time_total for event in events if "dot_product" in event.key)
    shares = {"linear layers": products / total, "attention": attention / total}
    return {**shares, "all else": 1 - sum(shares.values())}


@torch.no_grad()
def measure_layer_rate(model: nn.Module, n_rows: int = 2048) -> float:
    """Returns operations per second of the decoder's own linear layers, one after the other, nothing between."""
    layers = [module for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]
    inputs = {width: torch.randn(n_rows, width) for width in {layer.in_features for layer in layers}}
    start = time.perf_counter()
    for layer in layers:
        layer(inputs[layer.in_features])
    return 2 * n_rows * sum(layer.weight.numel() for layer in layers) / (time.perf_counter() - start)


def measure(name: str, work: Callable[[], object], operations: float, model: nn.Module, rounds: int) -> Row:
    work()
    seconds, rates = [], []
    for _ in range(rounds):
        rates.append(measure_layer_rate(model))
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    floor = PASSES[name] * operations / statistics.median(rates)
    taken, shares = statistics.median(seconds), measure_shares(work)
    return {"work": name, "seconds": taken, "floor, seconds": floor, "floor / time": floor / taken, **shares}


def list_rows(model_name: str, data: Sequence[str], args: argparse.Namespace) -> list[Row]:
    model, tokenizer = load_model(model_name), load_tokenizer(model_name)
    rows: list[Row] = []
    for path in data:
        pairs: list[TokenizedPair] = load_sample(path, tokenizer, args.pairs)
        few = pairs[: args.step_pairs]
        about: Row = {"model": name_of(model_name), "data": Path(path).stem}
        works = (
            ("scoring", lambda p=pairs: score(model, p, AUTO), pairs),
            ("training step", lambda p=few: step(model, p, AUTO), few),
        )
        for name, work, of in works:
            rows.append(
                {**about, "pairs": len(of), **measure(name, work, count_operations(model, of), model, args.rounds)}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--step-pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    args = parser.parse_args()
    use_fast_float32_on_cpu()
    table = format_table(list_rows(args.model, args.data, args))
    text = f"{describe_machine()}; float32, {os.cpu_count()} threads. Command: `python benchmarks/floor.py`.\n\n{table}"
    print(text)
    if args.write:
        replace_section(DOCS, "floor", text)


if __name__ == "__main__":
    main()
