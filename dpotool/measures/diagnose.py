"""Looks inside pairs: which tokens moved, where the probability went, how risky each pair looked before training."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from msgspec.structs import asdict

from dpotool.compare.diagnosis import summarize_diagnosis
from dpotool.data.encoding import PairEncoder
from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.subject import OpenSubject, open_subject
from dpotool.likelihood.views import PairView, iter_views
from dpotool.measures.ches import compute_ches, compute_head_products
from dpotool.measures.diagnosis_tables import SIDES, PairInside, build_frame, build_tokens, list_gains
from dpotool.measures.mass import VocabularyGains, compute_mass
from dpotool.measures.spans import AlignedAnswer, align_answers, compute_edit_similarity, sum_spans
from dpotool.models.identity import fingerprint_tokenizer
from dpotool.models.subject import Subject, describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.runs.about import Fingerprints, TableAbout
from dpotool.runs.locks import claiming
from dpotool.runs.schemas import DIAGNOSIS_SCHEMA, DIAGNOSIS_TOKEN_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.scoring import DiagnoseConfig


@dataclass(frozen=True, slots=True)
class DiagnosisResult:
    """One model's diagnosis."""

    label: str
    frame: pd.DataFrame
    tokens: pd.DataFrame
    summary: dict[str, Any]
    path: Path
    tokens_path: Path


@dataclass(slots=True)
class Stopwatch:
    """Seconds by part of the work, for what each measure costs; of several processes each has its own."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    n_pairs: int = 0
    """Pairs that this process looked into."""

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


def diagnose_models(
    models: Sequence[str], config: DiagnoseConfig, *, progress: Progress = SILENT
) -> list[DiagnosisResult]:
    """Diagnoses each model against its reference and writes diagnosis/<data>-<split>.parquet with what belongs to it.

    Raises:
        DpotoolError: a model, its reference or the data cannot be used; models before it keep their diagnoses.
    """
    return [_diagnose(describe_subject(model, config), config, progress) for model in models]


def _diagnose(subject: Subject, config: DiagnoseConfig, progress: Progress) -> DiagnosisResult:
    with claiming(subject.folder.path, "diagnose", progress.note):
        opened = open_subject(subject, progress, device_map=config.device_map)
        if opened.reference_scorer is None:
            progress.warn(
                f"{subject.label}: there is no reference, so changes cannot be measured. "
                "Name a reference with --reference"
            )
        gains, watch = VocabularyGains(), Stopwatch()
        found = look_into(opened, opened.pair_set.pairs, config, gains, watch, progress)
        frame = build_frame(opened, found, config)
        tokens = build_tokens(opened, found)
        return _write(opened, config, frame, tokens, gains, watch)


def look_into(
    opened: OpenSubject,
    pairs: Sequence[TokenizedPair],
    config: DiagnoseConfig,
    gains: VocabularyGains,
    watch: Stopwatch,
    progress: Progress = SILENT,
) -> list[PairInside]:
    """Returns what was found in every pair, in their order; of several processes each has the whole.

    Args:
        gains: sums that this call adds to; of several processes only the main one has the total.
        watch: adds up the seconds of each part of the work.
    """
    state = PartialState()
    encoder = PairEncoder(opened.tokenizer)
    end_id = _find_end(pairs, encoder)
    found: list[PairInside] = []
    with progress.track(f"diagnosing {opened.subject.label}", len(pairs)) as advance:
        views = iter_views(opened.policy_scorer, opened.reference_scorer, pairs)
        while True:
            with watch.timing("forward"):
                view = next(views, None)
            if view is None:
                break
            found += _read_view(view, encoder, end_id, config, gains, watch)
            watch.n_pairs += len(view.pairs)
            advance(len(view.pairs) * state.num_processes)
    if state.num_processes > 1:
        found = gather_object(found)
        everyone = gather_object([gains])  # asked of every process, or the others would wait for it for ever
        for other in everyone[1:] if state.is_main_process else ():
            gains.add(other.change, other.n_first)
    return sorted(found, key=lambda inside: inside.place)


def _find_end(pairs: Sequence[TokenizedPair], encoder: PairEncoder) -> int | None:
    """Returns the token that closes most answers: with a chat template it need not be the tokenizer's end token."""
    answers = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    ends = Counter(ids[-n] for ids in answers if (n := encoder.count_end(ids)))
    return ends.most_common(1)[0][0] if ends else None


def _read_view(
    view: PairView,
    encoder: PairEncoder,
    end_id: int | None,
    config: DiagnoseConfig,
    gains: VocabularyGains,
    watch: Stopwatch,
) -> list[PairInside]:
    judge = view.reference or view.policy  # risk is what one model says before the other is trained from it
    with watch.timing("ches"):
        risks = {name: values.cpu().numpy() for name, values in compute_ches(judge).items()}
    with watch.timing("output layer"):
        risks |= {name: values.cpu().numpy() for name, values in compute_head_products(judge).items()}
    with watch.timing("similarity"):
        answers = [(pair.chosen_ids, pair.rejected_ids) for pair in view.pairs]
        aligned = [align_answers(*both, (encoder.count_end(both[0]), encoder.count_end(both[1]))) for both in answers]
        similarity = [compute_edit_similarity(*both) for both in answers]
    with watch.timing("token log-probabilities"):
        logps = view.policy.logps.double().cpu().numpy()
        ref_logps = view.reference.logps.double().cpu().numpy() if view.reference else np.full_like(logps, np.nan)
    cuts = np.cumsum([len(ids) for pair in view.pairs for ids in (pair.chosen_ids, pair.rejected_ids)])
    starts = np.concatenate([[0], cuts])
    with watch.timing("mass"):
        looked, mass = _look_at_mass(view, aligned, starts, end_id, config, gains)
    inside = []
    for row, place in enumerate(view.places):
        numbers = {name: float(values[row]) for name, values in risks.items()} | {"edit_similarity": similarity[row]}
        found = PairInside(place, numbers, {}, {}, {})
        for number, side in enumerate(SIDES):
            first, last = starts[2 * row + number], starts[2 * row + number + 1]
            change = logps[first:last] - ref_logps[first:last]
            spans = aligned[row][number].spans
            numbers |= {f"{side}_{span}": value for span, value in sum_spans(change, spans).items()}
            numbers[f"{side}_displacement"] = float(change.sum())
            is_here = (looked >= first) & (looked < last)
            found.tokens[side] = {"logp": logps[first:last], "ref_logp": ref_logps[first:last]}
            found.tokens[side] |= {name: values[is_here] for name, values in mass.items()}
            found.spans[side], found.places[side] = spans, looked[is_here] - first
        numbers["reference_margin"] = _margin(ref_logps, starts, row) if view.reference else np.nan
        inside.append(found)
    return inside


def _margin(logps: np.ndarray, starts: np.ndarray, row: int) -> float:
    chosen, rejected = (logps[starts[2 * row + side] : starts[2 * row + side + 1]].sum() for side in (0, 1))
    return float(chosen - rejected)


def _look_at_mass(
    view: PairView,
    aligned: Sequence[tuple[AlignedAnswer, AlignedAnswer]],
    starts: np.ndarray,
    end_id: int | None,
    config: DiagnoseConfig,
    gains: VocabularyGains,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the tokens of the view that were looked into, and the columns of `compute_mass` for them.

    What the vocabulary gained is summed over the chosen answers alone.
    """
    if view.reference is None or not config.mass:
        return np.zeros(0, dtype=np.int64), {}
    columns, looked = [], []
    for number, side in enumerate(SIDES):
        if side == "rejected" and not config.rejected_mass:
            continue
        places, rivals = [], []
        for row, both in enumerate(aligned):
            first, last = starts[2 * row + number], starts[2 * row + number + 1]
            n_looked = last - first if config.positions is None else min(config.positions, last - first)
            places.append(np.arange(first, first + n_looked))
            rivals.append(both[number].rivals[:n_looked])
        looked.append(np.concatenate(places))
        device = view.policy.token_ids.device
        columns.append(
            compute_mass(
                view.policy,
                view.reference,
                torch.as_tensor(looked[-1], device=device),
                torch.as_tensor(np.concatenate(rivals), device=device),
                end_id,
                gains if side == "chosen" else VocabularyGains(),
            )
        )
    return np.concatenate(looked), {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}


def _write(
    opened: OpenSubject,
    config: DiagnoseConfig,
    frame: pd.DataFrame,
    tokens: pd.DataFrame,
    gains: VocabularyGains,
    watch: Stopwatch,
) -> DiagnosisResult:
    subject, source = opened.subject, opened.pair_set.source
    fingerprints = Fingerprints(
        model=opened.policy_scorer.fingerprint,
        reference=opened.reference_scorer.fingerprint if opened.reference_scorer else None,
        tokenizer=fingerprint_tokenizer(opened.tokenizer),
        data=source.fingerprint,
    )
    about = TableAbout(**opened.describe("diagnose", fingerprints)).to_dict()
    prices = {part: seconds / max(1, watch.n_pairs) for part, seconds in watch.seconds.items()}
    summary = {
        **about,
        **summarize_diagnosis(frame, tokens, seed=config.seed),
        "counts": opened.pair_set.counts.to_dict(),
        "vocabulary": list_gains(opened, gains) if len(gains.change) else None,
        "seconds_per_pair": prices,
    }
    path, tokens_path = (
        subject.folder.table_path(kind, source.name, source.split, format=config.format, variant=subject.variant)
        for kind in ("diagnosis", "diagnosis_token")
    )
    if PartialState().is_main_process:
        write_table(frame, path, DIAGNOSIS_SCHEMA, about, format=config.format)
        write_table(tokens, tokens_path, DIAGNOSIS_TOKEN_SCHEMA, about, format=config.format)
        write_summary(path, summary)
        opened.note_run("diagnose", asdict(fingerprints))
    return DiagnosisResult(subject.label, frame, tokens, summary, path, tokens_path)
