"""Times scoring and a training step with shared and with paired rows (`likelihood.layout`), which must agree.

    python benchmarks/layouts.py --model PATH pairs.jsonl ...

The layouts take turns, each first every other round, after a run of each that does not count. Printed are the medians
of the rounds, in seconds, and the median of their ratios.
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
    layouts = (PAIRED, SHARED)
    found = {layout: work(model, pairs, layout) for layout in layouts}
    np.testing.assert_allclose(found[SHARED], found[PAIRED], rtol=1e-5)
    seconds: dict[str, list[float]] = {PAIRED: [], SHARED: []}
    for turn in range(rounds):
        for layout in layouts[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            work(model, pairs, layout)
            seconds[layout].append(time.perf_counter() - start)
    paired, shared = (statistics.median(values) for values in seconds.values())
    ratio = statistics.median(p / s for p, s in zip(seconds[PAIRED], seconds[SHARED], strict=True))
    return f"{work.__name__}: paired {paired:.2f} s, shared {shared:.2f} s, ratio {ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--step-pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
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
