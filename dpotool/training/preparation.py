"""Everything before the first step: model, pairs, reference values, manifest, trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback

from dpotool.data.pair_sets import load_pair_set
from dpotool.data.pairs import PairSet, TokenizedPair
from dpotool.data.sources import has_test_split
from dpotool.errors import DpotoolError
from dpotool.gradients.monitor import TheoryMonitor
from dpotool.likelihood.pair_logps import ScoredPairs, refuse_non_finite
from dpotool.likelihood.scorer import Scorer
from dpotool.models.builtin import choose_pairs
from dpotool.models.determinism import resolve_max_length
from dpotool.models.identity import check_same_tokens, check_token_ids, fingerprint_tokenizer
from dpotool.models.loading import load_model, load_tokenizer
from dpotool.progress import Progress
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.settings.shared import parse_steps
from dpotool.training.arguments import build_training_arguments, count_steps, one_line_refusals
from dpotool.training.config import TrainConfig, TrainingSettings
from dpotool.training.dataset import PairDataset
from dpotool.training.folder import describe_devices, refuse_changes
from dpotool.training.objective import Objective, read_pair_shifts, record_settings
from dpotool.training.policy import add_adapter, check_step_zero, load_policy
from dpotool.training.resumable import CheckpointAt, GradientGuard, MetricsWriter
from dpotool.training.trainer import PreferenceTrainer
from dpotool.wording import count

TRAIN, EVALUATION = "train", "eval"
"""A run's sets of pairs, as its manifest names them."""
S = TypeVar("S", bound=TrainingSettings)


class ScoreReference(Protocol):
    """Computes reference values: `score_reference`, or what a rehearsal uses in its place."""

    def __call__(self, scorer: Scorer, pair_set: PairSet, progress: Progress) -> ScoredPairs: ...


def score_reference(scorer: Scorer, pair_set: PairSet, progress: Progress) -> ScoredPairs:
    """Returns log pi_ref of every pair, from the store where it has them."""
    source = pair_set.source
    logps = scorer.score_showing(pair_set.pairs, f"reference on {source.name} [{source.split}]", progress)
    refuse_non_finite(scorer.model, pair_set.pairs, logps, scorer.label or "the reference")
    return logps


def prepare_trainer(
    config: TrainConfig,
    objective: Objective,
    folder: RunFolder,
    progress: Progress,
    *,
    find_reference: ScoreReference = score_reference,
) -> PreferenceTrainer:
    """Loads everything, computes what is computed once, writes the manifest, and builds the trainer.

    Args:
        find_reference: computes reference values in another way, for a rehearsal. They are not checked against the
            policy then, and no manifest is written.
    """
    is_rehearsal = find_reference is not score_reference
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, progress=progress)
    policy = Scorer.configured(load_policy(config, progress), config, bf16=config.bf16, label=config.model)
    config = replace(config, max_length=resolve_max_length(config.max_length, policy.model, tokenizer))
    config, pair_sets = load_run_pairs(config, tokenizer, progress)
    _check_pairs(config, objective, policy.model, tokenizer, pair_sets)
    fingerprints: dict[str, str] = {}

    def record(**of_inputs: str) -> None:
        """Notes fingerprints; a resumed run refuses an input that has changed as soon as it is known."""
        fingerprints.update(of_inputs)
        if config.resume:
            refuse_changes(folder, fingerprints)

    record(**_fingerprint_inputs(policy, tokenizer, pair_sets))
    datasets = {name: PairDataset(pair_set.pairs) for name, pair_set in pair_sets.items()}
    if "reference" in objective.loss.needs:
        reference = policy
        if config.reference is not None:
            reference = _open_reference(config, config.reference, tokenizer, pair_sets, progress)
        record(reference=reference.fingerprint)
        find = partial(find_reference, reference, progress=progress)
        for name, dataset in datasets.items():
            _add_reference_values(dataset, pair_sets[name], find, with_prefixes=objective.loss.takes_tokens)
        del reference, find  # a reference that is another model is no longer needed
    if objective.adaptive is not None:
        shifts = read_pair_shifts(objective.adaptive, config, pair_sets[TRAIN], progress)
        record(theory=hashlib.sha256(shifts.tobytes()).hexdigest()[:16])
        _add_shifts(datasets, shifts)
    if config.lora:
        adapted = add_adapter(policy.model, config)
        policy = Scorer.configured(adapted, config, bf16=config.bf16, label=config.model)
    trainer = _build_trainer(config, objective, policy, tokenizer, datasets, folder, progress, not config.lora)
    if not (config.resume or is_rehearsal) and "reference" in fingerprints:
        is_own_start = fingerprints["reference"] == fingerprints["model"]
        check_step_zero(trainer, datasets[TRAIN], is_own_start=is_own_start, progress=progress)
    if PartialState().is_main_process and not is_rehearsal:
        _write_manifest(config, objective, pair_sets, fingerprints, policy.model, folder)
    return trainer


def _check_pairs(
    config: TrainConfig,
    objective: Objective,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pair_sets: Mapping[str, PairSet],
) -> None:
    """Raises DpotoolError where the model or the loss cannot take the pairs."""
    for pair_set in pair_sets.values():
        check_token_ids(model, pair_set.pairs, tokenizer, where=config.model)
        if objective.loss.validate_pairs is not None:
            objective.loss.validate_pairs(pair_set.pairs, objective.options)


def _fingerprint_inputs(
    policy: Scorer, tokenizer: PreTrainedTokenizerBase, pair_sets: Mapping[str, PairSet]
) -> dict[str, str]:
    fingerprints = {
        "model": policy.fingerprint,
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "data": pair_sets[TRAIN].source.fingerprint,
    }
    if EVALUATION in pair_sets:
        fingerprints["eval_data"] = pair_sets[EVALUATION].source.fingerprint
    return fingerprints


def _add_shifts(datasets: Mapping[str, PairDataset], shifts: np.ndarray) -> None:
    """Sets lambda of every training pair; evaluation pairs, whose loss needs one too, get the mean."""
    datasets[TRAIN].shifts = shifts
    if EVALUATION in datasets:
        datasets[EVALUATION].shifts = np.full(len(datasets[EVALUATION]), shifts.mean())


def _add_reference_values(
    dataset: PairDataset, pair_set: PairSet, find: Callable[[PairSet], ScoredPairs], *, with_prefixes: bool
) -> None:
    """Sets log pi_ref of the pairs, and of their answers cut to the length of the shorter one where a loss needs it."""
    logps = find(pair_set)
    dataset.chosen_reference, dataset.rejected_reference = logps.chosen, logps.rejected
    if with_prefixes:
        logps = find(replace(pair_set, pairs=[pair.cut_to_common() for pair in dataset.pairs]))
        dataset.chosen_prefix_reference, dataset.rejected_prefix_reference = logps.chosen, logps.rejected


def load_run_pairs(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, progress: Progress
) -> tuple[TrainConfig, dict[str, PairSet]]:
    """Returns the pairs by set, without EVALUATION where there are none to evaluate on; and the settings with the
    evaluation data and the splits filled in."""
    load = partial(
        load_pair_set, tokenizer=tokenizer, max_length=config.max_length, seed=config.seed, progress=progress
    )
    train = load(config, default_split="train")
    config = replace(config, split=train.source.split)
    evaluation = describe_evaluation(config)
    if evaluation is None:
        progress.note(
            f"{config.data} has no test split, so the run is not evaluated. Name one with --eval-data "
            "or --test-fraction"
        )
        return config, {TRAIN: train}
    held_out = load(evaluation, default_split="test")
    config = replace(config, eval_data=evaluation.data, eval_split=held_out.source.split)
    return config, {TRAIN: train, EVALUATION: held_out}


def describe_evaluation(config: S) -> S | None:
    """Returns settings that load the pairs to evaluate on; None where the data has no test split and none was named.

    Without `eval_data` these are the data's own test split. Data from elsewhere is not cut.
    """
    if config.eval_data is None and not has_test_split(choose_pairs(config.model, config.data), config.test_fraction):
        return None
    data = config.eval_data or config.data
    test_fraction = config.test_fraction if data == config.data else None
    return replace(config, data=data, split=config.eval_split, limit=config.eval_limit, test_fraction=test_fraction)


def _open_reference(
    config: TrainConfig,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    pair_sets: Mapping[str, PairSet],
    progress: Progress,
) -> Scorer:
    """Loads the model that `--reference` names, after checking that its token ids stand for the same tokens."""
    for pair_set in pair_sets.values():
        check_same_tokens(tokenizer, name, pair_set.pairs, trust_remote_code=config.trust_remote_code)
    model = load_model(
        name, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code, progress=progress
    )
    for pair_set in pair_sets.values():
        check_token_ids(model, pair_set.pairs, tokenizer, where=name)
    return Scorer.configured(model.requires_grad_(False), config, bf16=config.bf16, label=name)


def _write_manifest(
    config: TrainConfig,
    objective: Objective,
    pair_sets: dict[str, PairSet],
    fingerprints: dict[str, str],
    policy: nn.Module,
    folder: RunFolder,
) -> None:
    """Writes run.yaml with everything resolved; a resumed run keeps the one it began with."""
    if config.resume:
        folder.update_manifest(status="running")
        return
    data = {name: {**asdict(pair_set.source), **pair_set.counts.to_dict()} for name, pair_set in pair_sets.items()}
    manifest = collect_manifest(
        "train",
        record_settings(config, objective),
        fingerprints=fingerprints,
        data=data,
        devices=describe_devices(policy),
    )
    folder.write_manifest(manifest)


def _build_trainer(
    config: TrainConfig,
    objective: Objective,
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    datasets: dict[str, PairDataset],
    folder: RunFolder,
    progress: Progress,
    keeps_evaluations: bool,
) -> PreferenceTrainer:
    train, evaluation = datasets[TRAIN], datasets.get(EVALUATION)
    arguments = build_training_arguments(config, folder.path, len(train), has_eval=evaluation is not None)
    monitor = build_monitor(config, scorer.model, train.pairs, progress) if config.monitor_theory else None
    kept = parse_steps(config.save_at, count_steps(config, len(train)))
    callbacks = [GradientGuard(), MetricsWriter(folder.append_metrics), CheckpointAt(kept)]
    with one_line_refusals():
        trainer = PreferenceTrainer(
            scorer,
            arguments,
            objective,
            train_dataset=train,
            eval_dataset=evaluation,
            tokenizer=tokenizer,
            callbacks=callbacks,
            progress=progress,
            monitor=monitor,
            keeps_evaluations=keeps_evaluations,
        )
    trainer.kept_steps = kept
    trainer.remove_callback(PrinterCallback)  # prints every logged row on stdout
    return trainer


def build_monitor(
    config: TrainConfig, policy: nn.Module, pairs: Sequence[TokenizedPair], progress: Progress
) -> TheoryMonitor:
    """Returns the monitor of a run's steps, and says what it does not see.

    Raises:
        DpotoolError: the run's steps cannot be watched.
    """
    if config.gradient_checkpointing:
        raise DpotoolError(
            "a backward pass that recomputes activations cannot be watched",
            where="--monitor-theory",
            remedy="Leave --gradient-checkpointing out",
        )
    monitor = TheoryMonitor(policy, pairs)
    if monitor.left_out:
        progress.warn(
            f"--monitor-theory leaves out {count(len(monitor.left_out), 'parameter')} without a rule: "
            f"{', '.join(monitor.left_out)}"
        )
    return monitor
