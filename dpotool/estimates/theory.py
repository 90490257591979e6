"""What a theory table would take, without making it: `theory-gap --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from dpotool.data.pairs import TokenizedPair
from dpotool.estimates.estimate import (
    Estimate,
    count_tokens,
    measure_peak_bytes,
    seconds_since_start,
    time_strata,
)
from dpotool.gradients.batch_products import FEWEST_PAIRS, compute_batch_products
from dpotool.gradients.engine import GradientEngine
from dpotool.gradients.run import describe_study, open_study
from dpotool.gradients.unfinished import seconds_between_saves
from dpotool.likelihood.budget import plan_batches, resolve_batch_tokens
from dpotool.likelihood.memory import Plan, need_on_card
from dpotool.likelihood.store import look_up
from dpotool.likelihood.subject import OpenSubject
from dpotool.models.adapters import mark_trained_parameters
from dpotool.progress import Progress
from dpotool.settings.scoring import TheoryConfig, check_theory_config, parse_lambdas
from dpotool.wording import count

PROBED_PAIRS = (FEWEST_PAIRS, 3 * FEWEST_PAIRS)
"""Two samples whose batch products are taken; the line through their times is the estimate."""
_NO_LIMIT = 10**12


def plan_theory(config: TheoryConfig, *, progress: Progress) -> Estimate:
    """Loads everything as `theory-gap` would, and measures the products of a few pairs. Nothing is written.

    Raises:
        DpotoolError: as `run_theory`.
    """
    lambdas = parse_lambdas(config.lambdas)
    check_theory_config(config)
    opened = open_study(describe_study(config), progress)
    mark_trained_parameters(opened.policy)
    pairs = opened.pair_set.pairs
    estimate = Estimate("theory-gap", n_pairs={opened.pair_set.source.split: len(pairs)})
    estimate.n_tokens = count_tokens(pairs)
    engine = GradientEngine(opened.policy, config.parameters, pairs=pairs)
    estimate.seconds["loading"] = seconds_since_start()
    if opened.reference_scorer is not None:
        reference = opened.reference_scorer
        estimate.add_scoring("reference", reference, pairs, reference.find_missing(pairs))
    _add_products(estimate, config, opened, engine)
    n_means = 0
    if not config.pairs_only and len(pairs) >= FEWEST_PAIRS:
        shifts = sorted({*lambdas, 1.0}) if config.optimizer == "adamw" else []
        n_means = _add_batch_products(estimate, opened, engine, shifts)
    estimate.peak_bytes = measure_peak_bytes(opened.policy_scorer.device)
    if engine.selection.n_elements == sum(weight.numel() for weight in opened.policy.parameters()):
        plan = Plan("theory-gap", state_bytes=4 * n_means, n_tokens=estimate.batch_tokens, keeps_layers=True)
        estimate.card_bytes = need_on_card(opened.policy, plan)
    if config.check or config.verify:
        estimate.probe.append("The time of --check and --verify is not included.")
    return estimate


def _add_products(estimate: Estimate, config: TheoryConfig, opened: OpenSubject, engine: GradientEngine) -> None:
    folder = opened.policy_scorer.folder_of_products(engine.selection.parameters)
    pairs = list(look_up(folder, opened.pair_set.pairs)[2].values())  # the others are in the store
    estimate.batch_tokens = resolve_batch_tokens(config.batch_tokens, opened.policy, with_gradients=True)
    batches = plan_batches([2 * pair.longest for pair in pairs], estimate.batch_tokens)
    padded = [2 * len(batch) * pairs[batch[0]].longest for batch in batches]

    def run(number: int) -> None:
        for _ in engine.iter_products([pairs[place] for place in batches[number]], batch_tokens=_NO_LIMIT):
            pass

    estimate.n_padded_tokens = sum(padded)
    estimate.seconds["products of each pair"], n_probed = time_strata(padded, run)
    n_stored = len(opened.pair_set.pairs) - len(pairs)
    stored = f" {count(n_stored, 'pair is', 'pairs are').capitalize()} in the store already." if n_stored else ""
    estimate.probe.append(
        f"The time for the products of each pair was measured on {n_probed} of "
        f"{count(len(batches), 'batch', 'batches')}.{stored}"
    )


def _add_batch_products(
    estimate: Estimate, opened: OpenSubject, engine: GradientEngine, shifts: Sequence[float]
) -> int:
    """Returns how many mean gradients there are at a time.

    Some of the time is per token, some for passes over the weights, however few the pairs: so two sizes.
    """
    pairs = sorted(opened.pair_set.pairs, key=lambda pair: pair.longest)
    run = partial(_time_batch_products, opened, engine, shifts)
    samples = [_spread(pairs, n) for n in PROBED_PAIRS]
    few, many = (run(sample, estimate.batch_tokens) for sample in samples)
    n_few, n_many = (count_tokens(sample) for sample in samples)
    slope = max(0.0, (many - few) / (n_many - n_few)) if n_many > n_few else many / n_many
    seconds = max(0.0, few - slope * n_few) + slope * estimate.n_tokens
    estimate.seconds["products with the batch"] = seconds
    estimate.probe.append(
        "The time for the products with the batch was measured on "
        f"{' and then '.join(str(len(sample)) for sample in samples)} pairs."
    )
    n_passes = 5 if shifts else 3  # of each half both means, and what raises accuracy where the model has a reference
    n_bytes = 4 * engine.selection.n_elements
    estimate.probe.append(
        f"A run of more than {seconds_between_saves(n_bytes):.0f} s may keep up to {n_passes * n_bytes / 1e9:.1f} GB "
        "of mean gradients on the disk until it is finished."
    )
    return n_passes


def _time_batch_products(
    opened: OpenSubject,
    engine: GradientEngine,
    shifts: Sequence[float],
    pairs: Sequence[TokenizedPair],
    batch_tokens: int,
) -> float:
    nothing = np.zeros(len(pairs))
    start = time.perf_counter()
    compute_batch_products(
        opened.policy,
        pairs,
        engine.selection,
        (nothing, nothing),
        gamma=1.0,
        adamw_shifts=shifts,
        batch_tokens=batch_tokens,
    )
    return time.perf_counter() - start


def _spread(pairs: Sequence[TokenizedPair], n: int) -> list[TokenizedPair]:
    """Takes so many pairs at equal distances, from the middle of equal parts."""
    n = min(n, len(pairs))
    return [pairs[int((place + 0.5) * len(pairs) / n)] for place in range(n)]
