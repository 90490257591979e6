"""Displacement inside somebody else's training run: a callback for any `transformers.Trainer`, TRL's among them.

    trainer = DPOTrainer(..., callbacks=[dpotool.DisplacementCallback("held-out.jsonl", tokenizer, every=50)])

It scores held-out pairs before the first step, which are the reference, and again as the run goes on. Training is not
touched: weights and random state after a run are the same bit for bit with it and without. It leaves a run folder that
`dpotool report` reads.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.summaries import summarize_scores
from dpotool.compare.verdict import judge_displacement
from dpotool.data.pair_sets import load_pair_set, tokenize_preferences
from dpotool.data.pairs import PairSet
from dpotool.data.sources import convert_preferences
from dpotool.errors import DpotoolError
from dpotool.gradients.ghost.modes import evaluation_mode
from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.likelihood.processes import route_forward
from dpotool.likelihood.scorer import Scorer
from dpotool.measures.logps import LOGPS
from dpotool.measures.measure import ModelView, measure_pairs
from dpotool.measures.registry import build_schema
from dpotool.measures.run import build_score_frame
from dpotool.progress import SILENT
from dpotool.runs.about import Fingerprints, ScoreAbout
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import read_table, write_table
from dpotool.settings.shared import AUTO, DEFAULT_BETA, DataSettings

logger = logging.getLogger(__name__)

Pairs = str | PairSet | Iterable[Mapping[str, Any]]
"""What `--data` takes, tokenized pairs, or rows in one of TRL's preference formats (a `datasets.Dataset`, say)."""


class DisplacementCallback(TrainerCallback):
    """Watches log pi of held-out pairs while a Trainer trains, whatever its loss.

    Logs `displacement/chosen` and `displacement/rejected` (mean change of log pi against the start of training, nats),
    `displacement/share` (share of pairs whose chosen completion lost) and `displacement/accuracies` (share of pairs
    with a positive reward margin), each with `_low` and `_high`, the ends of its 95 % interval over prompts. Warns once
    when displacement becomes harmful by the criteria of dpotool's verdict.
    """

    def __init__(
        self,
        pairs: Pairs,
        tokenizer: PreTrainedTokenizerBase,
        *,
        every: int | None = None,
        split: str | None = None,
        limit: int | None = None,
        beta: float = DEFAULT_BETA,
        max_length: int | None = None,
        output: str | None = None,
        batch_tokens: int | str = AUTO,
    ) -> None:
        """Reads and tokenizes the pairs, as dpotool does everywhere; `max_length` should be that of the training.

        Args:
            every: optimiser steps between two scorings; by default at every evaluation and every save.
            split, limit: of the data, if its name is given.
            beta: scale of the rewards.
            output: run folder; without it `displacement` inside the Trainer's own output folder.
            batch_tokens: budget of padded tokens a batch, auto by free memory.
        """
        self.pair_set = _read_pairs(pairs, tokenizer, split, limit, max_length)
        self.every = every
        self.beta = beta
        self.output = output
        self.batch_tokens = batch_tokens
        self.max_length = max_length
        self.latest: dict[str, float] = {}
        """What was last logged."""
        self._reference: ScoredPairs | None = None
        self._last_step = -1
        self._has_warned = False
        self._reporters: list[TrainerCallback] | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Prepares a model whose weights are about to be sharded; any other model does not change."""
        if args.fsdp or args.deepspeed or os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
            route_forward(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        folder = self._open_folder(args)
        if state.global_step > 0:  # resumed: the start of training is behind us
            self._reference = self._read_reference(folder)
            return
        with _leaving_no_trace(kwargs["model"]):
            self._reference = self._score(args, kwargs["model"])
            self._report(args, state, self._reference)
        self._last_step = 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._look(args, state, kwargs["model"])

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is None:
            self._look(args, state, kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every is None:
            self._look(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._look(args, state, kwargs["model"])
        if state.is_world_process_zero:
            self._open_folder(args).update_manifest(status="finished")
        for reporter in self._reporters or []:
            writer = getattr(reporter, "tb_writer", None)
            if writer is not None:
                writer.close()

    def _look(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        """Scores the pairs once a step at most; every process takes part."""
        if state.global_step == self._last_step or self._reference is None:
            return
        self._last_step = state.global_step
        with _leaving_no_trace(model):
            self._report(args, state, self._score(args, model))

    def _score(self, args: TrainingArguments, model: nn.Module) -> ScoredPairs:
        mixed = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        scorer = Scorer(model, batch_tokens=self.batch_tokens, autocast=mixed, label=args.output_dir)
        return scorer.compute(self.pair_set.pairs)

    def _report(self, args: TrainingArguments, state: TrainerState, logps: ScoredPairs) -> None:
        """Logs the means of the scores, and writes table and summary into the run folder."""
        assert self._reference is not None
        if not state.is_world_process_zero:
            return
        run = self._build_run(args, logps, self._reference)
        summary = summarize_scores(run)
        verdict = judge_displacement(run)
        self.latest = _read_metrics(summary)
        folder = run.folder
        assert run.path is not None
        write_table(run.table, run.path, build_schema([LOGPS]), run.about.to_dict())
        counts = self.pair_set.counts.to_dict()
        write_summary(
            run.path, {**run.about.to_dict(), **summary, "counts": counts, "verdict": verdict and verdict.to_dict()}
        )
        folder.append_metrics({"step": state.global_step, **self.latest})
        state.log_history.append({**self.latest, "epoch": state.epoch, "step": state.global_step})
        self._hand_on(args, state)
        if verdict is not None and verdict.kind == "harmful" and not self._has_warned:
            self._has_warned = True
            logger.warning("step %d: %s", state.global_step, verdict.statement)

    def _build_run(self, args: TrainingArguments, logps: ScoredPairs, reference: ScoredPairs) -> ScoredRun:
        source, folder = self.pair_set.source, self._folder(args)
        views = [ModelView(None, self.pair_set.pairs, values, SILENT) for values in (logps, reference)]  # type: ignore[arg-type]
        frame = build_score_frame(self.pair_set, measure_pairs([LOGPS], views[0], views[1], self.beta))
        about = ScoreAbout(
            command="score",
            settings={"data": source.data, "split": source.split, "max_length": self.max_length, "beta": self.beta},
            model=args.output_dir,
            label=folder.name,
            reference=f"{args.output_dir} before training",
            data=source.name,
            split=source.split,
            beta=self.beta,
            max_length=self.max_length,
            fingerprints=Fingerprints(data=source.fingerprint),
        )
        return ScoredRun(frame, folder.name, about, path=self._table(folder))

    def _hand_on(self, args: TrainingArguments, state: TrainerState) -> None:
        """Logs to the services that the run logs to, by new reporters: the Trainer's are out of a callback's reach."""
        try:
            if self._reporters is None:
                self._reporters = [kind() for kind in get_reporting_integration_callbacks(args.report_to)]
            for reporter in self._reporters:
                reporter.on_log(args, state, TrainerControl(), logs=dict(self.latest))
        except Exception as error:  # a logging service must not end a training
            self._reporters = []
            logger.warning("displacement is logged to no service (%s); it is in %s", error, self._folder(args).path)

    def _folder(self, args: TrainingArguments) -> RunFolder:
        return RunFolder(Path(self.output or Path(args.output_dir or ".") / "displacement"))

    def _table(self, folder: RunFolder) -> Path:
        return folder.table_path("score", self.pair_set.source.name, self.pair_set.source.split)

    def _open_folder(self, args: TrainingArguments) -> RunFolder:
        folder = self._folder(args)
        if PartialState().is_main_process and not folder.manifest_path.exists():
            config = {"model": args.output_dir, "data": self.pair_set.source.data, "beta": self.beta, "seed": args.seed}
            fingerprints = {"data": self.pair_set.source.fingerprint}
            data = asdict(self.pair_set.source)
            folder.write_manifest(collect_manifest("score", config, fingerprints=fingerprints, data=data))
        return folder

    def _read_reference(self, folder: RunFolder) -> ScoredPairs:
        """Reads the values of the start of training, which are the reference in every later table."""
        path = self._table(folder)
        if not path.exists():
            raise DpotoolError(
                "a resumed run has no values of its start to compare with",
                where=str(path),
                remedy="Give DisplacementCallback the output folder of the run that is resumed",
            )
        frame = read_table(path)
        frame = frame[frame["status"] == "ok"]
        if frame["pair_id"].tolist() != [pair.pair_id for pair in self.pair_set.pairs]:
            raise DpotoolError("holds other pairs than this run is watched on", where=str(path))
        return ScoredPairs(frame["ref_chosen_logps"].to_numpy(), frame["ref_rejected_logps"].to_numpy())


def _read_pairs(
    pairs: Pairs, tokenizer: PreTrainedTokenizerBase, split: str | None, limit: int | None, max_length: int | None
) -> PairSet:
    if isinstance(pairs, PairSet):
        return pairs
    if isinstance(pairs, str):
        settings = DataSettings(data=pairs, split=split, limit=limit)
        return load_pair_set(settings, tokenizer, max_length=max_length, seed=0)
    return tokenize_preferences(convert_preferences(pairs, "held-out"), tokenizer, max_length=max_length)


def _read_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the logged numbers, each with the ends of its interval."""
    names = {
        "displacement/chosen": ("chosen_displacement", "mean"),
        "displacement/rejected": ("rejected_displacement", "mean"),
        "displacement/share": ("chosen_displaced_share", "value"),
        "displacement/accuracies": ("reward_accuracy", "value"),
    }
    found: dict[str, float] = {}
    for name, (key, statistic) in names.items():
        values = summary[key]
        if values is None:  # no pair's log-probability is finite any more: the trainer's own guards say why
            continue
        found |= {name: values[statistic], f"{name}_low": values["ci_low"], f"{name}_high": values["ci_high"]}
    return found


@contextmanager
def _leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every module's mode and every random state as it was."""
    python, numpy = random.getstate(), np.random.get_state()  # what a training may draw from
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices), evaluation_mode(model):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
