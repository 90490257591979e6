"""The quantities of Theorem 2.1 for a model and its pairs: computes them, writes table and summary, and can resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from msgspec.structs import replace as replace_struct

from dpotool.cache.parts import Values
from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.analysis import (
    add_batch_columns,
    build_theory_frame,
    compute_gaps,
    describe_table,
    give_advice,
    write_theory,
)
from dpotool.gradients.batch_products import FEWEST_PAIRS, BatchProducts, compute_batch_products
from dpotool.gradients.engine import GradientEngine, audit_trained
from dpotool.gradients.ghost.audit import Claims
from dpotool.gradients.products import PairProducts, collect_products
from dpotool.gradients.real_steps import StepLab, in_float64
from dpotool.gradients.unfinished import UnfinishedPasses
from dpotool.gradients.verification import check_products, verify_gaps
from dpotool.likelihood.budget import resolve_batch_tokens
from dpotool.likelihood.pair_logps import Advance, ScoredPairs, compute_pair_logps
from dpotool.likelihood.processes import gather_shares, wants_shards
from dpotool.likelihood.store import hash_pair, look_up
from dpotool.likelihood.subject import OpenSubject, open_subject
from dpotool.models.adapters import mark_trained_parameters
from dpotool.models.subject import Subject, describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.runs.locks import claiming
from dpotool.settings.scoring import TheoryConfig, check_theory_config, parse_lambdas
from dpotool.theory.advice import rank_drivers
from dpotool.theory.summary import summarize_theory
from dpotool.wording import count

NOT_REACHED = "not reached before the interruption"


@dataclass(frozen=True, slots=True)
class TheoryResult:
    """The table as written, with its summary."""

    frame: pd.DataFrame
    summary: dict[str, Any]
    path: Path
    was_interrupted: bool


def run_theory(config: TheoryConfig, *, progress: Progress = SILENT) -> TheoryResult:
    """Computes gradient products, u, v, band, gaps and advice and writes theory/<data>-<split>.parquet.

    Gradients are of the summed log-probabilities over the trained parameters: those of the whole model or of
    an adapter, or the part of them that `parameters` names. Pairs are shared out over processes, and the first one
    writes. An interruption (KeyboardInterrupt) keeps the pairs that were finished.

    Raises:
        DpotoolError: model, data or settings cannot be used.
    """
    lambdas = parse_lambdas(config.lambdas)
    check_theory_config(config)
    if config.check and wants_shards():
        raise DpotoolError(
            "autograd needs whole weights",
            where="--check",
            remedy="Run it on one process, or with DDP",
        )
    if config.verify and PartialState().num_processes > 1:
        raise DpotoolError("real steps are taken by one process", where="--verify", remedy="Run it without a launcher")
    subject = describe_study(config)
    with claiming(subject.folder.path, "theory-gap", progress.note):
        opened = open_study(subject, progress, shards=True)
        mark_trained_parameters(opened.policy)
        claims = audit_trained(opened.policy) if wants_shards() else None
        opened.shard(progress)
        reference = opened.compute_reference_logps(progress)
        opened = replace(opened, reference_scorer=None)  # its values are here, its memory is needed
        return _Study(config, opened, lambdas, reference, claims, progress).run()


def describe_study(config: TheoryConfig) -> Subject:
    """Works out which model gradients are taken of, and what it is compared with."""
    subject = describe_subject(config.model, config)
    subject = replace(subject, beta=config.beta or subject.beta)
    if subject.loss == "sft" and config.reference is None:
        # the start of preference training, which will be its own reference; what SFT began with plays no part in it
        subject = replace(subject, reference=None)
    return subject


def open_study(subject: Subject, progress: Progress, *, shards: bool = False) -> OpenSubject:
    """Loads the model that gradients are taken of, its reference and the pairs.

    Raises:
        DpotoolError: model or data cannot be used.
    """
    dtype = "float32" if subject.dtype == "auto" else subject.dtype  # bfloat16 gradients are too coarse to sum up
    return open_subject(subject, progress, dtype=dtype, shards=shards)


class _Study:
    """One table in the making: each stage adds to the summary, and an interruption ends with what is there."""

    def __init__(
        self,
        config: TheoryConfig,
        opened: OpenSubject,
        lambdas: Sequence[float],
        reference: ScoredPairs | None,
        claims: Claims | None,
        progress: Progress,
    ) -> None:
        self.config = config
        self.opened = opened
        self.lambdas = lambdas
        self.reference = reference
        self.progress = progress
        self.batch_tokens = resolve_batch_tokens(
            config.batch_tokens, opened.policy, opened.pair_set.pairs, with_gradients=True
        )
        self.claims = claims  # found before the weights were sharded
        self.engine = GradientEngine(opened.policy, config.parameters, pairs=opened.pair_set.pairs, claims=claims)
        self.found: dict[str, Any] = {}
        self.was_interrupted = False

    def run(self) -> TheoryResult:
        places, products = self._collect()
        pairs = [self.opened.pair_set.pairs[place] for place in places]
        logps = (None, None)
        if self.reference is not None:
            logps = (self.reference.chosen[places], self.reference.rejected[places])
        frame = build_theory_frame(
            collect_products(products),
            reference_chosen_logps=logps[0],
            reference_rejected_logps=logps[1],
            gamma=self.config.gamma,
        )
        frame = frame.assign(
            prompt_id=[pair.prompt_id for pair in pairs], pair_hash=[hash_pair(pair) for pair in pairs]
        )
        batch = None
        try:
            if not self.was_interrupted:
                frame, batch = self._look_at_batch(frame, pairs)
                self._prove(pairs, products, logps)
        except KeyboardInterrupt:
            self.was_interrupted = True
        return self._finish(frame, batch)

    def _collect(self) -> tuple[np.ndarray, list[PairProducts]]:
        """Returns the places of the finished pairs and their products, from the store where it has them.

        The rest is computed and stored as it is finished, so that a killed process loses a minute of work.
        """
        pairs, scorer = self.opened.pair_set.pairs, self.opened.policy_scorer
        folder = scorer.folder_of_products(self.engine.selection.parameters)
        keys, known, missing = look_up(folder, pairs)
        self.progress.note(
            f"gradient products: {sum(key in known for key in keys)} of {count(len(pairs), 'pair')} were stored"
        )
        try:
            with scorer.keeping(folder) as keeper, self.progress.track("gradient products", len(missing)) as advance:
                for key, values in self._iter_products(missing, advance):
                    keeper.take({key: values})
                    known[key] = values
        except KeyboardInterrupt:
            if not known or PartialState().num_processes > 1:
                raise
            self.was_interrupted = True
        if not self.was_interrupted:
            known |= self._gather(list(missing), known)
        places = [place for place, key in enumerate(keys) if key in known]
        products = [PairProducts(pairs[place].pair_id, *known[keys[place]]) for place in places]
        return np.array(places, dtype=int), products

    def _iter_products(
        self, missing: Mapping[str, TokenizedPair], advance: Advance
    ) -> Iterator[tuple[str, tuple[float, ...]]]:
        """Yields the products of pairs with their keys; of several processes each computes its share."""
        keys = list(missing)
        for batch in self.engine.iter_products(list(missing.values()), batch_tokens=self.batch_tokens):
            yield from ((keys[place], products.values) for place, products in batch.items())
            advance(len(batch) * PartialState().num_processes)

    def _gather(self, keys: Sequence[str], known: Values) -> Values:
        """Returns what all processes computed of these keys."""
        finished = {place: known[key] for place, key in enumerate(keys) if key in known}
        return {keys[place]: values for place, values in gather_shares(finished, len(keys)).items()}

    def _look_at_batch(
        self, frame: pd.DataFrame, pairs: Sequence[TokenizedPair]
    ) -> tuple[pd.DataFrame, BatchProducts | None]:
        """Adds what one step on all pairs would do, the advice that follows, and the pairs that drive displacement."""
        if self.config.pairs_only or len(pairs) < FEWEST_PAIRS:
            return frame, None
        batch = compute_batch_products(
            self.opened.policy,
            pairs,
            self.engine.selection,
            (frame["chosen_logratios"].to_numpy(), frame["rejected_logratios"].to_numpy()),
            gamma=self.config.gamma,
            adamw_shifts=sorted({*self.lambdas, 1.0}) if self.config.optimizer == "adamw" else (),
            batch_tokens=self.batch_tokens,
            progress=self.progress,
            unfinished=self._find_unfinished(),
            claims=self.claims,
        )
        frame = add_batch_columns(frame, batch)
        self.found["advice"] = give_advice(frame, batch, self.lambdas, seed=self.config.seed)
        self.found["advice_from"] = self.config.optimizer
        if self.found["advice"]["sgd"]["grid"]:  # else there is no scale to give a push on
            self.found["drivers"] = self._show_drivers(frame, pairs)
        return frame, batch

    def _find_unfinished(self) -> UnfinishedPasses:
        """Returns what keeps mean gradients beside the table until it is finished."""
        source = self.opened.pair_set.source
        identity = self.opened.policy_scorer.folder_of_products(self.engine.selection.parameters).name
        folder = self.opened.subject.folder.path / "theory" / f".unfinished-{source.name}-{source.split}"
        return UnfinishedPasses(folder, identity, self.progress)

    def _show_drivers(self, frame: pd.DataFrame, pairs: Sequence[TokenizedPair]) -> list[dict[str, Any]]:
        shown = []
        for place, driver in rank_drivers(frame, self.config.top):
            pair = pairs[place]
            ids = {"prompt": pair.prompt_ids, "chosen": pair.chosen_ids, "rejected": pair.rejected_ids}
            decode = self.opened.tokenizer.decode
            decoded = {name: decode(list(part), skip_special_tokens=True) for name, part in ids.items()}
            shown.append(driver | decoded)
        return shown

    def _prove(
        self,
        pairs: Sequence[TokenizedPair],
        products: Sequence[PairProducts],
        reference_logps: tuple[np.ndarray | None, np.ndarray | None],
    ) -> None:
        """Recomputes pairs by autograd (`--check`) and takes real steps (`--verify`), if the user asked for it."""
        policy, selection = self.opened.policy, self.engine.selection
        if self.config.check:
            self.found["check"] = check_products(
                policy, pairs, products, selection, self.config.check, progress=self.progress
            )
        if not self.config.verify:
            return
        n = min(self.config.verify, len(pairs))
        chosen, rejected = reference_logps
        with in_float64(policy):
            if chosen is None or rejected is None:
                own = compute_pair_logps(policy, pairs[:n], batch_tokens=self.batch_tokens, layout=self.config.layout)
                chosen, rejected = own.chosen, own.rejected
            known = (chosen[:n], rejected[:n])
            beta, layout = self.opened.subject.beta, self.config.layout
            lab = StepLab(policy, selection.parameters, pairs[:n], known, beta, self.batch_tokens, layout)
            verified = verify_gaps(lab, self.lambdas, gamma=self.config.gamma, progress=self.progress)
        self.found["verification"] = {"n": n, "dtype": "float64", "optimizers": verified}

    def _finish(self, frame: pd.DataFrame, batch: BatchProducts | None) -> TheoryResult:
        """Writes what there is."""
        pair_set, beta = self.opened.pair_set, self.opened.subject.beta
        n_excluded = dict(pair_set.counts.n_excluded)
        if len(frame) < len(pair_set.pairs):
            n_excluded[NOT_REACHED] = len(pair_set.pairs) - len(frame)
        about = describe_table(self.config, self.opened, self.engine.report, at_reference=self.reference is None)
        summary = about.to_dict() | summarize_theory(
            frame,
            compute_gaps(frame, batch, self.lambdas, beta=beta, gamma=self.config.gamma),
            gamma=self.config.gamma,
            n_excluded=n_excluded,
            counts=pair_set.counts.to_dict(),
            seed=self.config.seed,
        )
        summary |= self.found
        path = write_theory(
            self.config, self.opened, frame, replace_struct(about, n_excluded=sum(n_excluded.values())), summary
        )
        return TheoryResult(frame, summary, path, self.was_interrupted)
