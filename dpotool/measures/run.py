"""Scores models on a test set: a row per pair, and a summary with intervals over pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState
from msgspec.structs import asdict

from dpotool.compare.scored_run import ScoredRun
from dpotool.compare.verdict import judge_displacement
from dpotool.data.pairs import PairSet, TokenizedPair
from dpotool.errors import DpotoolError, find_place
from dpotool.likelihood.noise import choose_sample, score_in_twos, summarize_noise
from dpotool.likelihood.pair_logps import ScoredPairs, leave_out_non_finite
from dpotool.likelihood.processes import wants_shards
from dpotool.likelihood.subject import OpenSubject, open_subject
from dpotool.losses.options import check_told_lambda
from dpotool.losses.registry import get_loss
from dpotool.measures.measure import Measure, ModelView, measure_pairs
from dpotool.measures.registry import build_schema, choose_measures
from dpotool.models.identity import fingerprint_tokenizer
from dpotool.models.subject import Subject, describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.runs.about import Fingerprints, ScoreAbout
from dpotool.runs.folder import is_checkpoint_name
from dpotool.runs.locks import claiming_all
from dpotool.runs.schemas import TOKEN_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.scoring import ScoreConfig
from dpotool.wording import count


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One model's scores."""

    label: str
    frame: pd.DataFrame
    summary: dict[str, Any]
    path: Path
    measures: tuple[Measure, ...]
    """What the columns and the summary are of."""
    tokens_path: Path | None = None


def score_models(models: Sequence[str], config: ScoreConfig, *, progress: Progress = SILENT) -> list[ScoreResult]:
    """Scores each model and writes scores/<data>-<split>.parquet with its summary beside it.

    Log-probabilities that were computed before, for the same weights and tokens, come from the store.

    Raises:
        DpotoolError: a model, its reference or the data cannot be used; models before it keep their scores.
    """
    measures = choose_measures(config.measures)
    subjects = _name_subjects([describe_subject(model, config) for model in models], config)
    if len({find_place(subject.folder.path) for subject in subjects}) < len(subjects):
        raise DpotoolError(
            "two models would write the same scores",
            where="score",
            remedy="Score them apart, each with its own --output",
        )
    with claiming_all((subject.folder.path for subject in subjects), "score", progress.note):
        return [
            _score(replace(subject, beta=config.beta or subject.beta), config, measures, progress)
            for subject in subjects
        ]


def _name_subjects(subjects: Sequence[Subject], config: ScoreConfig) -> list[Subject]:
    """Gives models the label, loss and lambda that the user says they have; checkpoints of one run share a label.

    Raises:
        DpotoolError: one label for several models, or something else said of a run than it knows of itself.
    """
    loss = None if config.loss is None else get_loss(config.loss).name
    check_told_lambda(loss, config.lambda_)
    places = [find_place(subject.model) for subject in subjects]
    if config.label is not None and len({_find_holder(place) for place in places}) > 1:
        raise DpotoolError("one label for several models", where="--label", remedy="Score them apart")
    return [_name_subject(subject, config.label, loss, is_alone=len(subjects) == 1) for subject in subjects]


def _find_holder(place: Path) -> Path:
    """The run that a checkpoint belongs to; any other model itself."""
    return place.parent if is_checkpoint_name(place.name) else place


def _name_subject(subject: Subject, label: str | None, loss: str | None, *, is_alone: bool) -> Subject:
    given: dict[str, Any] = {"loss": loss}
    if subject.loss is not None and loss is not None:
        if loss != subject.loss:
            raise DpotoolError(
                "the run was trained with another loss",
                where="--loss",
                expected=subject.loss,
                got=loss,
                remedy="Leave it out",
            )
        given = {"loss": None, "lambda_": None}  # as a run's own run.yaml gives them to --config
    name = Path(subject.model).name
    if label is not None:
        label = f"{label}/{name}" if is_checkpoint_name(name) and not is_alone else label
        given["label"] = label
    settings: Any = replace(subject.config, **given)
    return replace(subject, config=settings, label=label or subject.label)


def _score(subject: Subject, config: ScoreConfig, measures: list[Measure], progress: Progress) -> ScoreResult:
    inside = [measure.name for measure in measures if measure.needs == "hidden states"]
    if inside and wants_shards():
        raise DpotoolError(
            f"{inside[0]} needs hidden states, and weights that are spread over processes give log-probabilities only",
            where="--measures", remedy="Run it on one process, or with DDP",
        )  # fmt: skip
    opened = open_subject(subject, progress, device_map=config.device_map, shards=True)
    opened.shard(progress)
    return score_opened(opened, config, measures, progress)


def score_opened(
    opened: OpenSubject, config: ScoreConfig, measures: list[Measure], progress: Progress, *, command: str = "score"
) -> ScoreResult:
    """Scores a model that is loaded, and writes its table and summary.

    Args:
        command: what the table says it was made by.
    """
    subject = opened.subject
    with_tokens = config.tokens or any(measure.needs == "tokens" for measure in measures)
    policy_logps = opened.compute_policy_logps(progress, with_tokens=with_tokens)
    reference_logps = opened.compute_reference_logps(progress, with_tokens=with_tokens)
    opened, policy_logps, reference_logps = _leave_out_non_finite(opened, policy_logps, reference_logps, progress)
    if reference_logps is None:
        progress.warn(
            f"{subject.label}: there is no reference, so rewards and displacement are missing. Name "
            "one with --reference"
        )
    noise = None
    if config.noise_floor and opened.pair_set.pairs:
        noise = _measure_noise(opened, policy_logps, reference_logps, progress)
    pairs = opened.pair_set.pairs
    policy = ModelView(opened.policy_scorer, pairs, policy_logps, progress)
    reference = None
    if opened.reference_scorer is not None and reference_logps is not None:
        reference = ModelView(opened.reference_scorer, pairs, reference_logps, progress)
    frame = build_score_frame(opened.pair_set, measure_pairs(measures, policy, reference, subject.beta))
    fingerprints = Fingerprints(
        model=opened.policy_scorer.fingerprint,
        reference=opened.reference_scorer.fingerprint if opened.reference_scorer else None,
        tokenizer=fingerprint_tokenizer(opened.tokenizer),
        data=opened.pair_set.source.fingerprint,
    )
    about = ScoreAbout(**opened.describe(command, fingerprints))
    layouts = {"policy": policy_logps.layouts, "reference": reference_logps.layouts if reference_logps else None}
    result = _write(opened, frame, measures, about, layouts, noise)
    if config.tokens:
        return replace(result, tokens_path=_write_tokens(opened, about, policy_logps, reference_logps))
    return result


def _leave_out_non_finite(
    opened: OpenSubject, policy: ScoredPairs, reference: ScoredPairs | None, progress: Progress
) -> tuple[OpenSubject, ScoredPairs, ScoredPairs | None]:
    scored = {"the model": (opened.policy, policy)}
    if opened.reference is not None and reference is not None:
        scored["the reference"] = (opened.reference, reference)
    pair_set, values = leave_out_non_finite(opened.pair_set, scored)
    n_left_out = len(opened.pair_set.pairs) - len(pair_set.pairs)
    if n_left_out:
        progress.warn(
            f"{opened.subject.label}: {count(n_left_out, 'pair is', 'pairs are')} left out, as the "
            "log-probability is not finite"
        )
    return replace(opened, pair_set=pair_set), values["the model"], values.get("the reference")


def _measure_noise(
    opened: OpenSubject, policy: ScoredPairs, reference: ScoredPairs | None, progress: Progress
) -> dict[str, Any]:
    """Scores a sample of the pairs again, in other batches, under both models."""
    places = choose_sample(opened.pair_set.pairs)
    pairs = [opened.pair_set.pairs[place] for place in places]
    first, second = policy.stack()[places], score_in_twos(opened.policy_scorer, pairs, progress)
    if opened.reference_scorer is None or reference is None:
        return summarize_noise((first, None), (second, None), None)
    ref_first, ref_second = reference.stack()[places], score_in_twos(opened.reference_scorer, pairs, progress)
    return summarize_noise((first, ref_first), (second, ref_second), opened.subject.beta)


def _write(
    opened: OpenSubject,
    frame: pd.DataFrame,
    measures: list[Measure],
    about: ScoreAbout,
    layouts: dict[str, Any],
    noise: dict[str, Any] | None,
) -> ScoreResult:
    subject, source = opened.subject, opened.pair_set.source
    config = subject.config
    path = subject.folder.table_path("score", source.name, source.split, format=config.format, variant=subject.variant)
    run = ScoredRun(frame, subject.label, about, noise, path=path)
    summary = about.to_dict()
    for measure in measures:
        summary |= measure.summarize_run(run, config.seed)
    summary["counts"] = opened.pair_set.counts.to_dict()
    summary["layouts"] = layouts
    verdict = judge_displacement(run, seed=config.seed)
    summary["verdict"] = verdict and verdict.to_dict()
    if PartialState().is_main_process:
        write_table(run.table, path, build_schema(measures), about.to_dict(), format=config.format)
        write_summary(path, summary)
        opened.note_run("score", asdict(about.fingerprints))
    return ScoreResult(subject.label, run.table, summary, path, tuple(measures))


def _write_tokens(opened: OpenSubject, about: ScoreAbout, policy: ScoredPairs, reference: ScoredPairs | None) -> Path:
    subject, pair_set = opened.subject, opened.pair_set
    used = {token for pair in pair_set.pairs for token in (*pair.chosen_ids, *pair.rejected_ids)}
    texts = {token: str(opened.tokenizer.decode([token])) for token in used}
    frame = build_token_frame(pair_set.pairs, policy, reference, texts)
    source, format_ = pair_set.source, subject.config.format
    path = subject.folder.table_path("token", source.name, source.split, format=format_, variant=subject.variant)
    if PartialState().is_main_process:
        write_table(frame, path, TOKEN_SCHEMA, about.to_dict(), format=format_)
    return path


def build_score_frame(pair_set: PairSet, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Returns a score table (SCORE_SCHEMA): which pair a row is, and the columns of the measures beside it.

    Args:
        columns: values of the pairs that are not excluded, in their order.
    """
    pairs = pair_set.pairs
    frame = pd.DataFrame(
        {
            "pair_id": [pair.pair_id for pair in pairs],
            "status": "ok",
            "prompt_id": [pair.prompt_id for pair in pairs],
            "prompt_tokens": [len(pair.prompt_ids) for pair in pairs],
            "chosen_tokens": [len(pair.chosen_ids) for pair in pairs],
            "rejected_tokens": [len(pair.rejected_ids) for pair in pairs],
            **columns,
            "score_chosen": pd.array([pair.score_chosen for pair in pairs], dtype="Float64"),
            "score_rejected": pd.array([pair.score_rejected for pair in pairs], dtype="Float64"),
        }
    )
    excluded = pd.DataFrame({"pair_id": list(pair_set.excluded), "status": list(pair_set.excluded.values())})
    return pd.concat([frame, excluded.astype({"pair_id": "int64"})]).sort_values("pair_id", ignore_index=True)


def build_token_frame(
    pairs: Sequence[TokenizedPair],
    policy: ScoredPairs,
    reference: ScoredPairs | None,
    token_texts: Mapping[int, str],
) -> pd.DataFrame:
    """Returns the columns of TOKEN_SCHEMA: a row per completion token, in the order of the score table.

    Args:
        policy, reference: values computed with `with_tokens`.
        token_texts: the text of every token id that occurs.
    """
    rows: list[dict[str, object]] = []
    for index, pair in enumerate(pairs):
        for side, name in enumerate(("chosen", "rejected")):
            ids = (pair.chosen_ids, pair.rejected_ids)[side]
            logps = policy.tokens[index][side]
            ref_logps = [math.nan] * len(ids) if reference is None else reference.tokens[index][side]
            rows += [
                {
                    "pair_id": pair.pair_id,
                    "side": name,
                    "position": position,
                    "token_id": token_id,
                    "token": token_texts[token_id],
                    "logp": float(logps[position]),
                    "ref_logp": float(ref_logps[position]),
                }
                for position, token_id in enumerate(ids)
            ]
    return pd.DataFrame(rows)
