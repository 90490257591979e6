"""Times scoring with batches of different sizes, for the limit that `--batch-tokens auto` has on a CPU.

    python benchmarks/batch_tokens.py --model PATH pairs.jsonl ...

The sizes take turns; the median of the rounds is printed, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time

from harness import load_model
from workloads import load_sample

from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.loading import load_tokenizer
from dpotool.models.precision import use_fast_float32_on_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    use_fast_float32_on_cpu()
    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    for path in args.data:
        pairs = load_sample(path, tokenizer, args.pairs)
        seconds: dict[int, list[float]] = {size: [] for size in args.sizes}
        for _ in range(args.rounds):
            for size in args.sizes:
                start = time.perf_counter()
                compute_pair_logps(model, pairs, batch_tokens=size)
                seconds[size].append(time.perf_counter() - start)
        print(path, {size: round(statistics.median(values), 2) for size, values in seconds.items()})


if __name__ == "__main__":
    main()
