"""Turns rated TL;DR summaries into preference pairs, a JSON object a line.

    python examples/smollm2/make_pairs.py tldr-sft-train-rel.json tldr_train.jsonl

The input is `data/tldr-sft-train-rel.json` (and `-test-`) of github.com/rycolab/odpo (Apache-2.0): for each Reddit post
a list of model-written summaries and their ratings. Two summaries of a post with different ratings make a pair; up to
three pairs a post are drawn, with a fixed seed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAIRS_PER_POST = 3


def make_pairs(post: str, responses: list[str], rewards: list[float], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Yields the drawn pairs of one post; the better rated summary is chosen."""
    rated = sorted(set(zip(rewards, responses, strict=True)), reverse=True)
    candidates = [pair for pair in itertools.combinations(rated, 2) if pair[0][0] > pair[1][0]]
    for (better, chosen), (worse, rejected) in draw.sample(candidates, min(PAIRS_PER_POST, len(candidates))):
        yield {
            "prompt": f"Summarize this post in one or two sentences.\n\n{post}\n\nTL;DR:",
            "chosen": chosen,
            "rejected": rejected,
            "score_chosen": float(better),
            "score_rejected": float(worse),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="preference pairs from rated summaries")
    parser.add_argument("ratings", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    posts = json.loads(arguments.ratings.read_text(encoding="utf-8"))
    draw = random.Random(0)
    rows = [
        row for post, rated in posts.items() for row in make_pairs(post, rated["responses"], rated["rewards"], draw)
    ]
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{arguments.out}: {len(rows)} pairs of {len(posts)} posts")


if __name__ == "__main__":
    main()
