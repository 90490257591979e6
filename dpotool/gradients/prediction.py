"""How much of the displacement between two checkpoints a first order explains, pair by pair.

The predicted change of log pi(y) is <grad log pi(y), D> with D the difference of the checkpoints' weights: exact to
first order, for any training that led from one to the other. At the middle between the two it is exact to second order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch import nn

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.directions import compute_directional_changes, parameter_difference
from dpotool.likelihood.budget import resolve_batch_tokens
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.likelihood.subject import OpenSubject, open_subject
from dpotool.models.adapters import merge_adapter
from dpotool.models.loading import load_tokenizer
from dpotool.models.subject import Subject, describe_subject, read_training_run
from dpotool.models.weights import has_quantised_weights, refuse_quantised
from dpotool.progress import SILENT, Progress
from dpotool.runs.about import Fingerprints, PredictionAbout
from dpotool.runs.folder import RunFolder
from dpotool.runs.locks import claiming
from dpotool.runs.schemas import PREDICTION_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.scoring import PredictConfig
from dpotool.settings.shared import AUTO
from dpotool.theory.summary import summarize_prediction
from dpotool.wording import count

POINTS = ("from", "middle", "to")


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """The table as written, with its summary."""

    frame: pd.DataFrame
    summary: dict[str, Any]
    path: Path


def run_prediction(
    end: str, start: str | None, config: PredictConfig, *, progress: Progress = SILENT
) -> PredictionResult:
    """Predicts every pair's change from one checkpoint to another and writes predictions/<data>-<split>.parquet.

    Adapters are merged into their base models first. The pairs, and where the table goes, are as for `score` of the
    second checkpoint.

    Args:
        end: the second checkpoint.
        start: the first; None: the model that the second one's run began with.

    Raises:
        DpotoolError: the checkpoints cannot be compared, or settings and data cannot be used.
    """
    if config.at not in POINTS:
        raise DpotoolError("no such point", where="--at", expected=" or ".join(POINTS), got=repr(config.at))
    subject = describe_subject(end, config)
    own_start = _find_start(subject)
    start = start or own_start
    if start is None:
        raise DpotoolError(
            "nothing says which model this one was trained from"
            if Path(end).exists()
            else "no such folder, and of a model from the hub nothing says which one it was trained from",
            where=end,
            remedy="Name it first: dpotool predict FROM TO",
        )
    subject = replace(subject, reference=start, reference_fingerprint=None)
    with claiming(subject.folder.path, "predict", progress.note):
        return _predict(subject, config, start, is_own_start=start == own_start, progress=progress)


def _predict(
    subject: Subject, config: PredictConfig, start: str, *, is_own_start: bool, progress: Progress
) -> PredictionResult:
    """Loads both checkpoints, computes the table and writes it."""
    dtype = "float32" if subject.dtype == "auto" else subject.dtype
    opened = open_subject(subject, progress, dtype=dtype)
    _check_tokenizers(start, opened.tokenizer, config)
    assert opened.reference is not None
    for name, model in ((start, opened.reference), (subject.model, opened.policy)):
        if has_quantised_weights(model):
            refuse_quantised(where=name)
    first, second = merge_adapter(opened.reference), merge_adapter(opened.policy)
    batch_tokens = resolve_batch_tokens(config.batch_tokens, first, opened.pair_set.pairs, with_gradients=True)
    frame = compute_prediction(
        first,
        second,
        opened.pair_set.pairs,
        at=config.at,
        batch_tokens=batch_tokens,
        layout=config.layout,
        progress=progress,
    )
    from_elsewhere = "" if is_own_start else f"from-{RunFolder(Path(start)).name.replace(':', '-')}"
    return _write(opened, config, frame, from_elsewhere, measure_distance(first, second))


def _write(
    opened: OpenSubject, config: PredictConfig, frame: pd.DataFrame, from_elsewhere: str, distance: float
) -> PredictionResult:
    """Writes table, summary and, into a folder without one, a manifest; of several processes the first one does.

    Args:
        from_elsewhere: name of the first checkpoint where it is not the one that the second began with; else empty.
    """
    subject, source = opened.subject, opened.pair_set.source
    about = PredictionAbout(
        **opened.describe("predict", Fingerprints(data=source.fingerprint)),
        from_=subject.reference,
        to=subject.model,
        at=config.at,
        n=len(frame),
        n_excluded=sum(opened.pair_set.counts.n_excluded.values()),
        distance=distance,
    )
    summary = about.to_dict() | summarize_prediction(frame, seed=config.seed)
    at = "" if config.at == "from" else f"at-{config.at}"
    variant = "-".join(filter(None, (subject.variant, from_elsewhere, at)))
    path = subject.folder.table_path("prediction", source.name, source.split, format=config.format, variant=variant)
    if PartialState().is_main_process:
        write_table(frame, path, PREDICTION_SCHEMA, about.to_dict(), format=config.format)
        write_summary(path, summary)
        opened.note_run("prediction")
    return PredictionResult(frame, summary, path)


def compute_prediction(
    first: nn.Module,
    second: nn.Module,
    pairs: list[TokenizedPair],
    *,
    at: str = "from",
    batch_tokens: int,
    layout: str = AUTO,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Computes measured and predicted changes of every pair from one model to the other (nats).

    Args:
        at: where the gradients are taken: at the first model (`from`), at the second (`to`), or in the `middle`.

    Raises:
        DpotoolError: the two do not have the same parameters, or one of them gives a value that is not finite.
    """
    start, end = dict(first.named_parameters()), dict(second.named_parameters())
    _check_parameters(start, end)
    difference = parameter_difference({name: weight.data for name, weight in start.items()}, end)
    with progress.track("first-order changes", len(pairs)) as advance, _standing_at(at, first, second) as model:
        (changes,), _ = compute_directional_changes(
            model,
            pairs,
            [difference],
            batch_tokens=batch_tokens,
            on_progress=advance,
        )
    logps: dict[str, tuple[np.ndarray, np.ndarray]] = {at: (changes.chosen_logps, changes.rejected_logps)}
    for name, model in (("from", first), ("to", second)):
        if name != at:
            with progress.track(f"scoring {name}", len(pairs)) as advance:
                scored = compute_pair_logps(model, pairs, batch_tokens=batch_tokens, layout=layout, on_progress=advance)
            logps[name] = scored.chosen, scored.rejected
    (chosen_before, rejected_before), (chosen_after, rejected_after) = logps["from"], logps["to"]
    frame = pd.DataFrame(
        {
            "pair_id": [pair.pair_id for pair in pairs],
            "prompt_id": [pair.prompt_id for pair in pairs],
            "chosen_logps": chosen_before,
            "rejected_logps": rejected_before,
            "chosen_change": chosen_after - chosen_before,
            "rejected_change": rejected_after - rejected_before,
            "predicted_chosen_change": changes.chosen,
            "predicted_rejected_change": changes.rejected,
        }
    )
    _check_finite(frame)
    return frame


@contextmanager
def _standing_at(at: str, first: nn.Module, second: nn.Module) -> Iterator[nn.Module]:
    """Yields the model at whose weights the gradients are taken; for `middle` the first is moved there and back."""
    if at != "middle":
        yield first if at == "from" else second
        return
    kept = {name: parameter.data for name, parameter in first.named_parameters()}
    end = dict(second.named_parameters())
    try:
        for name, parameter in first.named_parameters():
            parameter.data = (kept[name] + end[name].data.to(kept[name].device)) / 2
        yield first
    finally:
        for name, parameter in first.named_parameters():
            parameter.data = kept[name]


@torch.no_grad()
def measure_distance(first: nn.Module, second: nn.Module) -> float:
    """Returns the norm of the difference of all weights over that of the first model's: how far training went."""
    end = dict(second.named_parameters())
    squares = [
        ((end[name].to(weight.device).double() - weight.double()).square().sum(), weight.double().square().sum())
        for name, weight in first.named_parameters()
    ]
    moved, size = (float(sum(column)) for column in zip(*squares, strict=True))
    return (moved / size) ** 0.5


def _find_start(subject: Subject) -> str | None:
    """Returns the model that a run began with, or an adapter's base; not its reference, which may be another.

    Of any other model: the reference that it was scored against.
    """
    run = read_training_run(subject.model)
    if run is not None:
        return str(run["config"]["model"])
    if subject.reference is None and subject.folder.manifest_path.is_file():
        reference: str | None = subject.folder.read_manifest()["config"].get("reference")
        return reference
    return subject.reference


def _check_parameters(start: dict[str, nn.Parameter], end: dict[str, nn.Parameter]) -> None:
    for name in {**start, **end}:
        shapes = [tuple(side[name].shape) if name in side else None for side in (start, end)]
        if shapes[0] != shapes[1]:
            raise DpotoolError(
                "the two checkpoints are not of one architecture",
                where=name,
                expected=f"the same shape in both, {shapes[0] or 'none'}",
                got=str(shapes[1] or "none"),
            )


def _check_finite(frame: pd.DataFrame) -> None:
    is_finite = np.isfinite(frame.drop(columns="prompt_id").to_numpy(dtype=np.float64)).all(axis=1)
    if not is_finite.all():
        raise DpotoolError(
            f"a value of {int((~is_finite).sum())} of {count(len(frame), 'pair')} is not finite",
            where=f"row {frame['pair_id'][~is_finite].iloc[0]}, for one",
            remedy="Check both models' weights, or use --dtype float32",
        )


def _check_tokenizers(start: str, tokenizer: Any, config: PredictConfig) -> None:
    other = load_tokenizer(start, trust_remote_code=config.trust_remote_code)
    if other.get_vocab() != tokenizer.get_vocab():
        raise DpotoolError(
            "the checkpoints have different tokenizers, so their log-likelihoods are of different tokens", where=start
        )
