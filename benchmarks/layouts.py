"""Times scoring and a training step with shared and with paired rows (`likelihood.layout`), which must agree.

    python benchmarks/layouts.py --model PATH pairs.jsonl ...

The layouts take turns; the median of the rounds is printed, in seconds, with the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from harness import load_model
from torch import nn
from workloads import load_sample

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.layout import PAIRED, SHARED, RowLayout
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.loading import load_tokenizer
from dpotool.models.precision import use_fast_float32_on_cpu


def score(model: nn.Module, pairs: Sequence[TokenizedPair], layout: str) -> np.ndarray:
    return compute_pair_logps(model, pairs, layout=layout).chosen


def step(model: nn.Module, pairs: Sequence[TokenizedPair], layout: str) -> np.ndarray:
    """Runs DPO's loss forward and back, with a reference that finds both completions equally likely."""
    logps = compute_completion_logps(model, RowLayout.of(model, layout).collate_step(pairs))
    loss = -nn.functional.logsigmoid(0.1 * (logps[0::2] - logps[1::2])).mean()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return loss.detach().numpy()


def compare(work: Callable[..., np.ndarray], model: nn.Module, pairs: Sequence[TokenizedPair], rounds: int) -> str:
    seconds: dict[str, list[float]] = {PAIRED: [], SHARED: []}
    found = {}
    for _ in range(rounds):
        for layout, values in seconds.items():
            start = time.perf_counter()
            found[layout] = work(model, pairs, layout)
            values.append(time.perf_counter() - start)
    np.testing.assert_allclose(found[SHARED], found[PAIRED], rtol=1e-5)
    paired, shared = (statistics.median(values) for values in seconds.values())
    return f"{work.__name__}: paired {paired:.2f} s, shared {shared:.2f} s, ratio {paired / shared:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--step-pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    use_fast_float32_on_cpu()
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    for path in args.data:
        pairs = load_sample(path, tokenizer, args.pairs)
        with torch.no_grad():
            print(path, compare(score, model, pairs, args.rounds))
        print(path, compare(step, model, pairs[: args.step_pairs], args.rounds))


if __name__ == "__main__":
    main()
