"""What a scoring or a diagnosis would do and take, without doing it: `--dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pandas as pd

from dpotool.compare.diagnosis import SPANS, summarize_diagnosis
from dpotool.compare.scored_run import SIDES, ScoredRun
from dpotool.compare.summaries import summarize_scores
from dpotool.compare.verdict import judge_displacement
from dpotool.data.pairs import PairSet, TokenizedPair
from dpotool.estimates.estimate import (
    Estimate,
    count_tokens,
    estimate_scoring,
    measure_peak_bytes,
    reset_peak_bytes,
    seconds_since_start,
    time_strata,
)
from dpotool.likelihood.budget import find_most_tokens, resolve_batch_tokens
from dpotool.likelihood.memory import Plan, need_on_card
from dpotool.likelihood.noise import find_missing_seconds
from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.likelihood.scorer import Scorer
from dpotool.likelihood.subject import OpenSubject, open_subject
from dpotool.measures.ches import CHES_COLUMNS, HEAD_COLUMNS
from dpotool.measures.diagnose import Stopwatch, look_into
from dpotool.measures.diagnosis_tables import PairInside, build_frame, build_tokens
from dpotool.measures.logps import LOGPS, derive_rewards
from dpotool.measures.mass import VocabularyGains
from dpotool.measures.measure import Measure, ModelView
from dpotool.measures.registry import choose_measures
from dpotool.measures.run import build_score_frame
from dpotool.models.loading import resolve_device
from dpotool.models.subject import describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.runs.about import ScoreAbout
from dpotool.settings.scoring import DiagnoseConfig, ScoreConfig
from dpotool.wording import count

Config = TypeVar("Config", ScoreConfig, DiagnoseConfig)


def plan_scorings(models: Sequence[str], config: ScoreConfig, *, progress: Progress) -> Iterator[Estimate]:
    """Loads everything as `score` would, asks the store, and measures a few batches, one model after the other.

    What starting the process took is counted with the first model. Nothing is written.

    Raises:
        DpotoolError: as `score_models`.
    """
    return _plan_each(models, config, _plan, progress)


def plan_diagnoses(models: Sequence[str], config: DiagnoseConfig, *, progress: Progress) -> Iterator[Estimate]:
    """Loads everything as `diagnose` would, and looks into a few batches, one model after the other.

    What starting the process took is counted with the first model. Nothing is written, and nothing is read from the
    store, as a diagnosis needs more than what is stored.

    Raises:
        DpotoolError: as `diagnose_models`.
    """
    return _plan_each(models, config, _plan_diagnosis, progress)


def _plan_each(
    models: Sequence[str], config: Config, plan: Callable[[str, Config, float, Progress], Estimate], progress: Progress
) -> Iterator[Estimate]:
    began = 0.0
    for model in models:
        has_own_peak = began == 0 or reset_peak_bytes(resolve_device(config.device))
        estimate = plan(model, config, began, progress)
        if not has_own_peak:
            estimate.probe.append("The memory is the peak of this model and of those before it.")
        yield estimate
        began = seconds_since_start()


def _plan(model: str, config: ScoreConfig, began: float, progress: Progress) -> Estimate:
    measures = choose_measures(config.measures)
    opened = open_subject(describe_subject(model, config), progress, device_map=config.device_map)
    pairs = opened.pair_set.pairs
    estimate = Estimate(f"score {model}", n_pairs={opened.pair_set.source.split: len(pairs)})
    estimate.n_tokens = count_tokens(pairs)
    estimate.seconds["loading"] = seconds_since_start() - began
    policy, reference = opened.policy_scorer, opened.reference_scorer
    if any(measure.needs == "tokens" for measure in measures):
        config = replace(config, tokens=True)  # what has values per token is computed anew, as the store has sums alone
    _add_model(estimate, "policy", policy, pairs, config)
    if reference is not None:
        is_policy = reference.fingerprint == policy.fingerprint
        _add_model(estimate, "reference", reference, pairs, config, is_stored_by_then=is_policy)
    for measure in measures:
        if measure is not LOGPS:
            estimate.seconds[measure.name] = _time_measure(measure, policy, reference, pairs)
    estimate.seconds["statistics"] = _time_statistics(opened.pair_set)
    estimate.peak_bytes = measure_peak_bytes(policy.device)
    estimate.card_bytes = _need_on_card(opened, config)
    return estimate


def _need_on_card(opened: OpenSubject, config: ScoreConfig | DiagnoseConfig) -> int:
    policy, reference = opened.policy_scorer, opened.reference_scorer
    n_tokens = find_most_tokens(policy.model) if config.batch_tokens == "auto" else int(config.batch_tokens)
    n_models = 1 if reference is None or reference.model is policy.model else 2
    return need_on_card(policy.model, Plan("score", n_tokens=n_tokens), n_models=n_models)


def _time_measure(measure: Measure, policy: Scorer, reference: Scorer | None, pairs: Sequence[TokenizedPair]) -> float:
    """Computes the measure for a few batches under the policy; its time does not depend on the log-probabilities."""
    batches = policy.rows.plan(pairs, resolve_batch_tokens(policy.batch_tokens, policy.model, pairs))

    def run(number: int) -> None:
        members = [pairs[place] for place in batches[number]]
        lengths = [(len(pair.chosen_ids), len(pair.rejected_ids)) for pair in members]
        tokens = [(np.zeros(chosen), np.zeros(rejected)) for chosen, rejected in lengths]
        logps = ScoredPairs(np.zeros(len(members)), np.zeros(len(members)), tokens)
        measure.compute(ModelView(policy, members, logps, SILENT))

    seconds, _ = time_strata([count_tokens([pairs[place] for place in batch]) for batch in batches], run)
    return seconds * (2 if measure.takes_reference and reference is not None else 1)


def _plan_diagnosis(model: str, config: DiagnoseConfig, began: float, progress: Progress) -> Estimate:
    opened = open_subject(describe_subject(model, config), progress, device_map=config.device_map)
    pairs, policy = opened.pair_set.pairs, opened.policy_scorer
    estimate = Estimate(f"diagnose {model}", n_pairs={opened.pair_set.source.split: len(pairs)})
    estimate.n_tokens = count_tokens(pairs)
    estimate.seconds["loading"] = seconds_since_start() - began
    estimate.batch_tokens = resolve_batch_tokens(policy.batch_tokens, policy.model, pairs)
    batches = policy.rows.plan(pairs, estimate.batch_tokens)
    padded = [policy.rows.collate([pairs[place] for place in batch]).input_ids.numel() for batch in batches]
    estimate.n_padded_tokens = sum(padded)

    def run(number: int) -> None:
        members = [pairs[place] for place in batches[number]]
        look_into(opened, members, config, VocabularyGains(), Stopwatch())

    estimate.seconds["looking into pairs"], n_probed = time_strata(padded, run)
    estimate.probe.append(
        f"The time for looking into pairs was measured on {n_probed} of {count(len(batches), 'batch', 'batches')}."
    )
    if opened.reference_scorer is not None:
        estimate.seconds["statistics"] = _time_diagnosis_statistics(opened, config)
    estimate.peak_bytes = measure_peak_bytes(policy.device)
    estimate.card_bytes = _need_on_card(opened, config)
    return estimate


def _time_diagnosis_statistics(opened: OpenSubject, config: DiagnoseConfig) -> float:
    """Makes the tables and the summary of invented values: their time depends on numbers of pairs and tokens alone."""
    draw = np.random.default_rng(0)
    numbers = [*CHES_COLUMNS, *HEAD_COLUMNS, "edit_similarity", "reference_margin"]
    numbers += [f"{side}_{part}" for side in SIDES for part in ("displacement", *SPANS)]
    found = []
    for place, pair in enumerate(opened.pair_set.pairs):
        lengths = {"chosen": len(pair.chosen_ids), "rejected": len(pair.rejected_ids)}
        tokens = {side: {name: draw.normal(size=n) for name in ("logp", "ref_logp")} for side, n in lengths.items()}
        spans = {side: [SPANS[0]] * n for side, n in lengths.items()}
        row = dict(zip(numbers, draw.normal(size=len(numbers)), strict=True))
        found.append(PairInside(place, row, tokens, spans, {}))
    start = time.perf_counter()
    summarize_diagnosis(build_frame(opened, found, config), build_tokens(opened, found))
    return time.perf_counter() - start


def _add_model(
    estimate: Estimate,
    name: str,
    scorer: Scorer,
    pairs: Sequence[TokenizedPair],
    config: ScoreConfig,
    *,
    is_stored_by_then: bool = False,
) -> None:
    missing: Sequence[TokenizedPair] = []
    again: Sequence[TokenizedPair] = []
    if not is_stored_by_then:
        missing = scorer.find_missing(pairs)
        again = find_missing_seconds(scorer, pairs) if config.noise_floor else []
    estimate.n_cached[name] = len(pairs) - len(missing)
    todo = pairs if config.tokens else missing
    if not (todo or again):
        estimate.probe.append(f"No batch was run for the {name}, because all its values will be in the store.")
        return
    cost = estimate_scoring(scorer, todo or again)
    estimate.batch_tokens = cost.batch_tokens
    estimate.probe.append(
        f"The time for the {name} was measured on {cost.n_probed} of {count(cost.n_batches, 'batch', 'batches')}."
    )
    if todo:
        estimate.n_padded_tokens = max(estimate.n_padded_tokens, cost.n_padded_tokens)
        estimate.seconds[name] = cost.seconds
    if again:
        estimate.seconds[f"{name}, noise floor"] = cost.seconds * count_tokens(again) / cost.n_tokens


def _time_statistics(pair_set: PairSet) -> float:
    """Runs the statistics on invented values: their time depends on the number of pairs alone."""
    draw = np.random.default_rng(0)
    chosen, rejected = -draw.gamma(2.0, 20.0, size=(2, len(pair_set.pairs)))
    columns = {"chosen_logps": chosen, "rejected_logps": rejected}
    columns |= {"ref_chosen_logps": chosen - draw.normal(size=len(chosen)), "ref_rejected_logps": rejected}
    start = time.perf_counter()
    rewards = derive_rewards(pd.DataFrame(columns), 0.1)
    run = ScoredRun(build_score_frame(pair_set, {**columns, **rewards}), about=ScoreAbout(beta=0.1))
    summarize_scores(run)
    judge_displacement(run)
    return time.perf_counter() - start
