"""The same from Python: train two runs, read their scores, and compare them pair by pair.

    python examples/05_python_api.py
    python examples/05_python_api.py --model MODEL --data pairs.jsonl --test-fraction 0.1

A command's settings are a dataclass, and each command is one function. Nothing here prints but this script.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dpotool.measures.config import ScoreConfig
from dpotool.measures.run import score_models
from dpotool.stats.bootstrap import bootstrap_interval
from dpotool.training.config import TrainConfig
from dpotool.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description="DPO against DPO-Shift, pair by pair")
    parser.add_argument("--model", default="builtin:demo")
    parser.add_argument("--data", default="builtin:demo")
    parser.add_argument("--test-fraction", type=float)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/example-05"))
    arguments = parser.parse_args()

    shared = {name: getattr(arguments, name) for name in ("model", "data", "test_fraction", "max_steps")}
    dpo = train(TrainConfig(**shared, loss="dpo", output=str(arguments.output / "dpo")))
    shift = train(TrainConfig(**shared, loss="shift", lambda_=0.75, output=str(arguments.output / "shift")))

    folders = [str(result.folder.path) for result in (dpo, shift)]
    scores = [result.frame.set_index("pair_id") for result in score_models(folders, ScoreConfig())]

    # Both runs answer the same pairs, so differences are taken within a pair; that makes the interval narrow.
    for column, unit in (("chosen_logps", "nats"), ("reward_margins", "nats")):
        difference = bootstrap_interval(scores[1][column] - scores[0][column])
        print(
            f"{column}, DPO-Shift minus DPO: {difference.value:+.3f} {unit} "
            f"[{difference.ci_low:+.3f}, {difference.ci_high:+.3f}]"
        )


if __name__ == "__main__":
    main()
