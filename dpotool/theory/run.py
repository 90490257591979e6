"""Theorem 2.1 on a model and its pairs: the theory table, its summary, and what an interruption leaves of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dpotool.likelihood.reference import ReferenceLogps
from dpotool.likelihood.subject import OpenSubject, open_subject
from dpotool.models.loading import Locate
from dpotool.models.subject import describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.results.atomic import ensure_writable, write_json
from dpotool.results.manifest import collect_manifest
from dpotool.results.runs import summary_path
from dpotool.results.schemas import THEORY_SCHEMA
from dpotool.results.tables import write_table
from dpotool.results.theory_summary import summarize_theory
from dpotool.theory.analysis import build_theory_frame, check_gamma
from dpotool.theory.config import TheoryConfig, parse_lambdas
from dpotool.theory.products import PairProducts, collect_products, iter_gradient_products

NOT_REACHED = "not reached before the interruption"


@dataclass(frozen=True, slots=True)
class TheoryResult:
    """The table as written, with its summary."""

    frame: pd.DataFrame
    summary: dict[str, Any]
    path: Path
    was_interrupted: bool


def run_theory(config: TheoryConfig, *, progress: Progress = SILENT, locate: Locate = str) -> TheoryResult:
    """Computes <W,L>, ‖W‖², ‖L‖², u, v and the band of every pair and writes theory/<data>-<split>.parquet.

    Gradients are of the summed log-probabilities over all trained parameters: the whole model, or an adapter's own.
    An interruption (KeyboardInterrupt) keeps the pairs that were finished.

    Raises:
        DpotoolError: model, data or settings cannot be used.
    """
    lambdas = parse_lambdas(config.lambdas)
    check_gamma(config.gamma)
    subject = describe_subject(config.model, config)
    if subject.loss == "sft" and config.reference is None:
        # the start of preference training, which will be its own reference; what SFT began with plays no part in it
        subject = replace(subject, reference=None)
    ensure_writable(subject.folder.path)
    dtype = "float32" if subject.dtype == "auto" else subject.dtype  # bfloat16 gradients are too coarse to sum up
    opened = open_subject(subject, progress, locate, dtype=dtype)
    reference = opened.compute_reference_logps(progress)
    _choose_trained_parameters(opened)
    finished, was_interrupted = _collect(opened, progress)
    n = len(finished)
    frame = build_theory_frame(
        collect_products(finished),
        reference_chosen_logps=None if reference is None else reference.chosen[:n],
        reference_rejected_logps=None if reference is None else reference.rejected[:n],
        gamma=config.gamma,
    )
    return _write(config, opened, frame, lambdas, reference, was_interrupted)


def _choose_trained_parameters(opened: OpenSubject) -> None:
    """Marks what training would move: an adapter's own weights where the policy has one, else every weight."""
    named = list(opened.policy.named_parameters())
    adapter = {name for name, _ in named if "lora_" in name or "modules_to_save" in name}
    for name, parameter in named:
        parameter.requires_grad_(name in adapter if adapter else True)


def _collect(opened: OpenSubject, progress: Progress) -> tuple[list[PairProducts], bool]:
    pairs = opened.pair_set.pairs
    finished: list[PairProducts] = []
    try:
        with progress.track("gradient products", len(pairs)) as advance:
            for products in iter_gradient_products(opened.policy, pairs):
                finished.append(products)
                advance(1)
    except KeyboardInterrupt:
        if not finished:
            raise
        return finished, True
    return finished, False


def _write(
    config: TheoryConfig,
    opened: OpenSubject,
    frame: pd.DataFrame,
    lambdas: list[float],
    reference: ReferenceLogps | None,
    was_interrupted: bool,
) -> TheoryResult:
    subject, pair_set = opened.subject, opened.pair_set
    source, counts = pair_set.source, pair_set.counts
    trained = [p.numel() for p in opened.policy.parameters() if p.requires_grad]
    n_excluded = dict(counts.n_excluded)
    if was_interrupted:
        n_excluded[NOT_REACHED] = len(pair_set.pairs) - len(frame)
    about = {
        "model": subject.model,
        "label": subject.label,
        "reference": subject.reference,
        "data": source.name,
        "split": source.split,
        "gamma": config.gamma,
        "n_parameters": sum(trained),
        "dtype": str(next(opened.policy.parameters()).dtype).removeprefix("torch."),
        "at_reference": reference is None,
        "n_excluded": sum(n_excluded.values()),
    }
    summary = summarize_theory(
        frame, lambdas, gamma=config.gamma, n_excluded=n_excluded, counts=counts.to_dict(), seed=config.seed
    )
    path = subject.folder.theory_path(source.name, source.split, config.format)
    write_table(frame, path, THEORY_SCHEMA, about, format=config.format)
    write_json(summary_path(path), {**about, **summary})
    if not subject.folder.manifest_path.exists():
        settings = {**config.to_dict(), "max_length": opened.max_length}
        manifest = collect_manifest("theory", settings, data=asdict(source))
        subject.folder.write_manifest(manifest | {"status": "finished"})
    return TheoryResult(frame, {**about, **summary}, path, was_interrupted)
