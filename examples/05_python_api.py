"""The same from Python: train two runs, read their scores, and compare them pair by pair.

    python examples/05_python_api.py
    python examples/05_python_api.py --model MODEL --data pairs.jsonl --test-fraction 0.1

`import dpotool` has a function for each verb of the command line (docs/python.md). Only this script prints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dpotool


def main() -> None:
    parser = argparse.ArgumentParser(description="DPO against DPO-Shift, pair by pair")
    parser.add_argument("--model", default="builtin:demo")
    parser.add_argument("--data", default="builtin:demo")
    parser.add_argument("--test-fraction", type=float)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/example-05"))
    arguments = parser.parse_args()

    shared = {name: getattr(arguments, name) for name in ("model", "data", "test_fraction", "max_steps")}
    dpo = dpotool.train(**shared, loss="dpo", output=str(arguments.output / "dpo"))
    shift = dpotool.train(**shared, loss="shift", lambda_=0.75, output=str(arguments.output / "shift"))
    folders = [str(result.folder.path) for result in (dpo, shift)]

    scores = dpotool.score(*folders)
    print(scores.groupby("model")[["chosen_displacement", "reward_margins"]].mean())

    # Both runs answer the same pairs, so differences are taken within a pair; that makes the interval narrow.
    findings = dpotool.compare_runs(*folders)
    for metric in ("chosen_logps", "reward_margins"):
        for label, difference in findings.comparison.differences.items():
            found = difference.metrics[metric].difference
            print(
                f"{metric}, {label} minus {findings.comparison.baseline}: {found.value:+.3f} nats "
                f"[{found.ci_low:+.3f}, {found.ci_high:+.3f}]"
            )
    print(findings.statement)


if __name__ == "__main__":
    main()
