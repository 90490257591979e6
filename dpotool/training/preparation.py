"""Everything before the first step: model, pairs, reference values, manifest, trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback

from dpotool.data.pairs import PairSet
from dpotool.errors import DpotoolError
from dpotool.gradients.monitor import TheoryMonitor
from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.likelihood.scorer import Scorer
from dpotool.models.fingerprint import fingerprint_tokenizer
from dpotool.models.limits import resolve_max_length
from dpotool.models.loading import load_tokenizer
from dpotool.progress import Progress
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.training.adaptive import read_pair_shifts
from dpotool.training.arguments import build_training_arguments, one_line_refusals
from dpotool.training.callbacks import CheckpointAt, GradientGuard, MetricsWriter
from dpotool.training.config import TrainConfig, parse_steps
from dpotool.training.dataset import PairDataset
from dpotool.training.folder import describe_devices
from dpotool.training.objective import Objective, record_settings
from dpotool.training.pair_sets import RunPairs, load_run_pairs
from dpotool.training.policy import add_adapter, load_policy
from dpotool.training.reference import check_step_zero, compute_references, load_reference
from dpotool.training.trainer import PreferenceTrainer

FindReferences = Callable[[Scorer, list[PairSet], Progress], list[ScoredPairs]]
"""The reference's scorer, sets of pairs -> log pi_ref of each set."""


def prepare_trainer(
    config: TrainConfig,
    objective: Objective,
    folder: RunFolder,
    progress: Progress,
    *,
    find_references: FindReferences = compute_references,
) -> PreferenceTrainer:
    """Loads everything, computes what is computed once, writes the manifest, and builds the trainer.

    Args:
        find_references: another way to have reference values, for a rehearsal: those are not checked against the
            policy, and no manifest is written.
    """
    is_rehearsal = find_references is not compute_references
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code, progress=progress)
    policy = load_policy(config, progress)
    config = replace(config, max_length=resolve_max_length(config.max_length, policy, tokenizer))
    config, pairs = load_run_pairs(config, tokenizer, progress)
    if objective.loss.validate_pairs is not None:
        for pair_set in pairs.all:
            objective.loss.validate_pairs(pair_set.pairs, objective.options)
    make_scorer = partial(
        Scorer,
        batch_tokens=config.batch_tokens,
        layout=config.layout,
        autocast=torch.bfloat16 if config.bf16 else None,
    )
    scorer = make_scorer(policy, label=config.model)
    fingerprints = {
        "model": scorer.fingerprint,
        "tokenizer": fingerprint_tokenizer(tokenizer),
        "data": pairs.train.source.fingerprint,
    }
    datasets = [PairDataset(pair_set.pairs) for pair_set in pairs.all]
    if "reference" in objective.loss.needs:
        reference = scorer
        if config.reference:
            model = load_reference(config, config.reference, progress)
            reference = make_scorer(model, label=config.reference)
            del model
        fingerprints["reference"] = reference.fingerprint
        values = find_references(reference, pairs.all, progress)
        datasets = [
            PairDataset(pair_set.pairs, logps.chosen, logps.rejected)
            for pair_set, logps in zip(pairs.all, values, strict=True)
        ]
        del reference
    if objective.adaptive is not None:
        shifts = read_pair_shifts(objective.adaptive, config, pairs.train, progress)
        datasets[0].shifts = shifts
        for held_out in datasets[1:]:
            held_out.shifts = np.full(len(held_out), shifts.mean())  # they have no row; only their loss needs it
    if config.lora:
        policy = add_adapter(policy, config)
        scorer = make_scorer(policy, label=config.model)
    trainer = _build_trainer(config, objective, scorer, tokenizer, datasets, folder, progress, not config.lora)
    if not (config.resume or is_rehearsal) and "reference" in fingerprints:
        is_own_start = fingerprints["reference"] == fingerprints["model"]
        check_step_zero(trainer, datasets[0], is_own_start=is_own_start, progress=progress)
    if PartialState().is_main_process and not is_rehearsal:
        _write_manifest(config, objective, pairs, fingerprints, policy, folder)
    return trainer


def _write_manifest(
    config: TrainConfig,
    objective: Objective,
    pairs: RunPairs,
    fingerprints: dict[str, str],
    policy: nn.Module,
    folder: RunFolder,
) -> None:
    """Writes run.yaml with everything resolved; a resumed run keeps the one it began with."""
    if config.resume:
        folder.update_manifest(status="running")
        return
    data = {
        name: {**asdict(pair_set.source), **pair_set.counts.to_dict()}
        for name, pair_set in zip(("train", "eval"), pairs.all, strict=False)
    }
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
    datasets: list[PairDataset],
    folder: RunFolder,
    progress: Progress,
    keeps_evaluations: bool,
) -> PreferenceTrainer:
    has_eval = len(datasets) > 1
    arguments = build_training_arguments(config, folder.path, len(datasets[0]), has_eval=has_eval)
    monitor = build_monitor(config, scorer.model, progress) if config.monitor_theory else None
    callbacks = [GradientGuard(), MetricsWriter(folder.append_metrics), CheckpointAt(parse_steps(config.save_at))]
    with one_line_refusals():
        trainer = PreferenceTrainer(
            scorer,
            arguments,
            objective,
            train_dataset=datasets[0],
            eval_dataset=datasets[1] if has_eval else None,
            tokenizer=tokenizer,
            callbacks=callbacks,
            progress=progress,
            monitor=monitor,
            keeps_evaluations=keeps_evaluations,
        )
    trainer.remove_callback(PrinterCallback)  # prints every logged row on stdout
    return trainer


def build_monitor(config: TrainConfig, policy: nn.Module, progress: Progress) -> TheoryMonitor:
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
    monitor = TheoryMonitor(policy)
    if monitor.left_out:
        progress.warn(
            f"--monitor-theory leaves out {len(monitor.left_out)} parameters without a rule: "
            f"{', '.join(monitor.left_out)}"
        )
    return monitor
