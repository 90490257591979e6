"""What a training run would take, without running it: `train --dry-run`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState

from dpotool.data.pairs import PairSet
from dpotool.errors import DpotoolError
from dpotool.estimates.estimate import (
    Estimate,
    count_tokens,
    estimate_scoring,
    measure_peak_bytes,
    seconds_since_start,
    time_strata,
)
from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.likelihood.scorer import Scorer
from dpotool.models.library_calls import quiet_transformers
from dpotool.progress import Progress
from dpotool.runs.folder import RunFolder
from dpotool.training.arguments import check_arguments, count_evaluations, count_steps
from dpotool.training.config import TrainConfig, check_config, fill_in
from dpotool.training.dataset import PairDataset
from dpotool.training.objective import build_objective
from dpotool.training.preparation import prepare_trainer
from dpotool.training.trainer import PreferenceTrainer
from dpotool.wording import count


def plan_training(config: TrainConfig, *, progress: Progress) -> Estimate:
    """Prepares a run as `train` would, and measures some of its micro-batches, a step of the optimiser and some
    scoring. The weights in memory are moved; nothing is written.

    Raises:
        DpotoolError: as `train`; or the run is to be resumed, or has several processes.
    """
    if config.resume or PartialState().num_processes > 1:
        raise DpotoolError(
            "only a new run of one process can be measured",
            where="--dry-run",
            remedy="Leave --resume and the launcher out",
        )
    check_config(config)
    config = fill_in(config)
    objective = build_objective(config, progress)
    check_arguments(config)
    estimate = Estimate("train")

    def stand_in(scorer: Scorer, pair_set: PairSet, progress: Progress) -> ScoredPairs:
        return _add_reference(estimate, scorer, pair_set)

    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary) / "run")
        trainer = prepare_trainer(config, objective, folder, progress, find_reference=stand_in)
        estimate.seconds = {"loading": seconds_since_start() - estimate.probe_seconds} | estimate.seconds
        _add_steps(estimate, config, trainer)
        _add_evaluations(estimate, config, trainer)
    estimate.peak_bytes = measure_peak_bytes(next(trainer.policy.parameters()).device)
    estimate.card_bytes = trainer.need_on_card()
    estimate.probe.append("The time of saving the weights, at the end and every 200 steps, is not included.")
    return estimate


def _add_reference(estimate: Estimate, scorer: Scorer, pair_set: PairSet) -> ScoredPairs:
    """Looks into the store and measures what is missing; returns zeros, which cost a training step as much."""
    began = time.perf_counter()
    pairs = pair_set.pairs
    estimate.add_scoring(f"reference on {pair_set.source.split}", scorer, pairs, scorer.find_missing(pairs))
    estimate.probe_seconds += time.perf_counter() - began
    return ScoredPairs(np.zeros(len(pairs)), np.zeros(len(pairs)))


def _add_steps(estimate: Estimate, config: TrainConfig, trainer: PreferenceTrainer) -> None:
    pairs, size = trainer.pairs, config.batch_size
    assert size is not None
    n_steps = count_steps(config, len(pairs))
    order = np.random.default_rng(config.seed).permutation(len(pairs))
    micro_batches = [order[start : start + size].tolist() for start in range(0, len(pairs), size)]
    collate: Any = trainer.data_collator
    dataset = cast(PairDataset, trainer.train_dataset)
    padded = {
        number: collate([dataset[place] for place in batch])["input_ids"].numel()
        for number, batch in enumerate(micro_batches)
    }
    largest_first = sorted(padded, key=lambda number: -padded[number])
    rehearsal = _Rehearsal(trainer, n_steps, checkpointing=config.gradient_checkpointing)
    rehearsal.run(micro_batches[largest_first[-1]])
    rehearsal.time_optimizer()  # makes the optimiser's state, which is there while the rest is measured
    epoch, n_probed = time_strata(
        [padded[number] for number in largest_first],
        lambda number: rehearsal.run(micro_batches[largest_first[number]]),
    )
    n_micro_batches = n_steps * config.gradient_accumulation
    estimate.seconds["forward and backward"] = epoch * n_micro_batches / len(micro_batches)
    estimate.seconds["optimiser"] = n_steps * rehearsal.time_optimizer()
    estimate.n_pairs = {"train": len(pairs)}
    share = n_micro_batches / len(micro_batches)
    estimate.n_tokens = round(share * count_tokens(pairs))
    estimate.n_padded_tokens = round(share * sum(padded.values()))
    estimate.batch_tokens = max(padded.values())
    estimate.probe.append(
        f"{count(n_probed, 'micro-batch', 'micro-batches')} and 2 steps of the optimiser were run, where training has "
        f"{n_micro_batches} and {n_steps}."
    )


def _add_evaluations(estimate: Estimate, config: TrainConfig, trainer: PreferenceTrainer) -> None:
    if not isinstance(trainer.eval_dataset, PairDataset):
        return
    pairs = trainer.eval_dataset.pairs
    estimate.n_pairs["evaluation"] = len(pairs)
    n_times = count_evaluations(count_steps(config, len(trainer.pairs)), int(trainer.args.eval_steps or 1))
    if trainer.keeps_evaluations:
        is_reference = config.reference is None and "reference" in trainer.objective.loss.needs
        n_times -= is_reference or not trainer.scorer.find_missing(pairs)  # the store has the first one by then
    estimate.seconds[count(n_times, "evaluation")] = n_times * estimate_scoring(trainer.scorer, pairs).seconds


class _Rehearsal:
    """Runs micro-batches as the Trainer would, without its loop."""

    def __init__(self, trainer: PreferenceTrainer, n_steps: int, *, checkpointing: bool) -> None:
        self.trainer = trainer
        trainer.state.max_steps = n_steps
        if checkpointing:
            policy: Any = trainer.policy
            policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = trainer.accelerator.prepare_model(trainer.model)
        self.optimizer = trainer.create_optimizer()

    def run(self, places: list[int]) -> None:
        """Runs one micro-batch forward and back, as the first of its step."""
        self.optimizer.zero_grad()
        dataset: Any = self.trainer.train_dataset
        batch = self.trainer.data_collator([dataset[place] for place in places])
        with quiet_transformers():
            self.trainer.training_step(self.model, batch, torch.tensor(len(places)))
        self._wait()

    def time_optimizer(self) -> float:
        """Returns the seconds of clipping and one step with the gradients that are there."""
        start = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.trainer.policy.parameters(), self.trainer.args.max_grad_norm or 1.0)
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
