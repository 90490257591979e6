"""How often the recommendation's rule admits a run that is truly worse: operating characteristics, simulated.

    python benchmarks/recommendation.py

Each study draws n pairs. The baseline ranks 75 % of them right. A run differs from it on 15 % of the pairs, split so
that its true accuracy is lower by 0, 1.5, 3, 5 or 8 points; its chosen likelihood is higher and its margin kept, so
that accuracy alone decides. The rule is `compare.eligibility`'s own at its defaults: 3 points must be ruled out.
The last row offers all five runs at once, the worse the higher its chosen likelihood, as on a lambda curve: how often
is the one taken truly worse by more than 3 points? It prints the table of docs/comparing.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from dpotool.compare.eligibility import Candidate, Rule
from dpotool.stats.bootstrap import bootstrap_shares
from dpotool.stats.intervals import Interval
from dpotool.stats.paired import Tested, compare_shares

LOSSES = (0.0, 1.5, 3.0, 5.0, 8.0)
"""Points."""
SIZES = (100, 400, 2000)
ACCURACY, DISCORDANT = 0.75, 0.15
_KNOWN = Interval(1.0, 0.9, 1.1)
CANDIDATE = Candidate(
    name="run", run="run", rule=Rule(), chosen=Tested(difference=_KNOWN, p_value=0.0, p_adjusted=0.0),
    accuracy_difference=None, accuracy=None, margin_left=_KNOWN, margin_kept=0.9, n=0, n_baseline=0, n_discordant=None,
)  # fmt: skip


def draw_study(rng: np.random.Generator, n: int, losses: tuple[float, ...]) -> list[bool]:
    """Draws the pairs once and a run for each loss; returns which runs are eligible."""
    right = rng.random(n) < ACCURACY
    return [is_eligible(rng, right, loss / 100) for loss in losses]


def is_eligible(rng: np.random.Generator, right: np.ndarray, loss: float) -> bool:
    """Draws a run that loses this share of the pairs on balance, and asks the rule."""
    lost, won = (DISCORDANT + loss) / 2 / ACCURACY, (DISCORDANT - loss) / 2 / (1 - ACCURACY)
    flips = rng.random(len(right)) < np.where(right, lost, won)
    ours = right ^ flips
    options = {"n_resamples": 1000, "seed": int(rng.integers(2**31))}
    difference = compare_shares(ours, right, n_permutations=99, **options).difference
    accuracy = bootstrap_shares({"": ours}, **options)[""]
    run = replace(CANDIDATE, n=len(right), n_baseline=len(right), accuracy_difference=difference, accuracy=accuracy)
    return run.is_eligible


def simulate(n: int, n_studies: int, seed: int) -> list[float]:
    """Returns the share of studies in which each run alone is eligible, and that in which a bad one is taken of all."""
    rng = np.random.default_rng([seed, n])
    found = np.array([draw_study(rng, n, LOSSES) for _ in range(n_studies)])
    takes_bad = found[:, np.array(LOSSES) > Rule().delta].any(axis=1)  # the worst that is eligible is the one taken
    return [*found.mean(axis=0), takes_bad.mean()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="for each number of pairs")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    columns = [simulate(n, told.studies, told.seed) for n in SIZES]
    names = [f"alone, true loss {loss:g} points" for loss in LOSSES] + [
        "one of all five, truly more than 3 points worse"
    ]
    print(f"| taken, % of studies | {' | '.join(f'{n:,} pairs' for n in SIZES)} |\n|---|{'---|' * len(SIZES)}")
    for name, *shares in zip(names, *columns, strict=True):
        print(f"| {name} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")


if __name__ == "__main__":
    main()
