"""Scores blends of two models: a score table for each point on the line between their weights, as of a trained run.

The reference is scored first and released, then one point after the other is scored while memory holds the two models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpotool.data.pair_sets import load_pair_set
from dpotool.data.pairs import PairSet, TokenizedPair
from dpotool.errors import DpotoolError, find_place
from dpotool.likelihood.pair_logps import Advance, ScoredPairs, find_non_finite, refuse_non_finite
from dpotool.likelihood.scorer import Scorer
from dpotool.likelihood.subject import OpenSubject
from dpotool.measures.blend_ends import Ends, Point, plan_points, read_ends
from dpotool.measures.registry import choose_measures
from dpotool.measures.run import ScoreResult, score_opened
from dpotool.models.blending import WeightLine, save_checkpoint
from dpotool.models.determinism import resolve_max_length
from dpotool.models.identity import check_same_tokenizer, check_same_tokens, check_token_ids
from dpotool.models.loading import load_model, load_tokenizer
from dpotool.models.subject import Subject, describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.runs.folder import RunFolder
from dpotool.runs.locks import claiming_all
from dpotool.runs.manifest import collect_manifest
from dpotool.settings.scoring import BlendConfig, ScoreConfig
from dpotool.wording import count


@dataclass(frozen=True, slots=True)
class BlendResult:
    """The points that were scored."""

    ends: Ends
    points: list[Point]
    scores: list[ScoreResult]
    """Of the points, in their order."""
    checkpoint: Path | None = None
    """Where the blend was saved, with --write."""


class _ScoredReference(Scorer):
    """The reference's values of the pairs, when the model itself is no longer in memory."""

    def __init__(self, scorer: Scorer, pairs: Sequence[TokenizedPair], logps: ScoredPairs) -> None:
        super().__init__(nn.Module(), label=scorer.label, fingerprint=scorer.fingerprint)
        self._known = dict(
            zip((pair.pair_id for pair in pairs), zip(logps.chosen, logps.rejected, strict=True), strict=True)
        )
        self._logps = logps

    def score(
        self, pairs: Sequence[TokenizedPair], *, with_tokens: bool = False, on_progress: Advance | None = None
    ) -> ScoredPairs:
        """Returns what was computed before, of the same pairs in the same order."""
        assert not with_tokens and [pair.pair_id for pair in pairs] == list(self._known)
        if on_progress is not None:
            on_progress(len(pairs))
        return replace(self._logps, n_stored=len(pairs))


@dataclass(frozen=True, slots=True)
class _Setting:
    """What all points have in common."""

    subject: Subject
    tokenizer: PreTrainedTokenizerBase
    pair_set: PairSet
    max_length: int
    reference: _ScoredReference | None


def score_blends(first: str, second: str, config: BlendConfig, *, progress: Progress = SILENT) -> BlendResult:
    """Scores points on the line between two models' weights, each into its folder; may save one of them.

    Raises:
        DpotoolError: the two cannot be blended, or there are no such points between them; nothing was computed yet.
    """
    ends = read_ends(first, second)
    points = plan_points(ends, config.at, config.weight)
    if config.write is not None and len(points) != 1:
        raise DpotoolError(
            "saves one point",
            where="--write",
            got=f"{count(len(points), 'point')}",
            remedy="Name it with --at or --weight",
        )
    root, subject = _describe(ends, config)
    folders = [RunFolder(root if config.write else root / point.name) for point in points]
    for folder in folders:
        _check_folder(folder, ends, point=None if config.write else points[folders.index(folder)])
    if ends.is_of_one_start is None:
        progress.warn(
            f"nothing says that {first} and {second} were trained from one start; only then is a blend of use"
        )
    with claiming_all((folder.path for folder in folders), "blend", progress.note):
        setting = _prepare(ends, subject, progress)
        load = partial(_load, subject, progress)
        line = WeightLine(partial(load, first), partial(load, second), ends.models)
        scores = [
            _score_point(setting, ends, point, folder, line, config, progress)
            for point, folder in zip(points, folders, strict=True)
        ]
    return BlendResult(ends, points, scores, folders[0].path if config.write else None)


def _describe(ends: Ends, config: BlendConfig) -> tuple[Path, Subject]:
    """Returns the folder to write to, and what is known of reference, pairs and precision."""
    names = [Path(model).name.replace(":", "-") for model in ends.models]
    root = Path(config.write or config.output or Path("runs") / f"blend-{names[0]}-{names[1]}")
    subject = describe_subject(ends.owner, replace(config, output=str(root)))
    others = [run for run in ends.runs if run is not None]
    if len(others) == 2:
        _refuse_difference(others, "beta", config.beta, "--beta")
        if config.reference is None:
            _refuse_difference([run.get("fingerprints") or {} for run in others], "reference", None, "--reference")
        tested = [(run.get("data") or {}).get("eval") or {} for run in others]
        _refuse_difference(tested, "fingerprint", config.data, "--data", "evaluation pairs")
    return root, replace(subject, beta=config.beta or subject.beta)


def _refuse_difference(runs: Sequence[Any], name: str, given: Any, flag: str, said: str | None = None) -> None:
    values = [run.get("config", run).get(name) for run in runs]
    if given is None and None not in values and values[0] != values[1]:
        raise DpotoolError(
            f"the two runs have another {said or name} each", where="blend", got=f"{values[0]} and {values[1]}",
            remedy=f"Say with {flag} which one holds for the blends",
        )  # fmt: skip


def _check_folder(folder: RunFolder, ends: Ends, point: Point | None) -> None:
    """Refuses a folder that holds anything but the same blend; one that is saved needs an empty one."""
    if not folder.path.exists() or not any(path.name != ".lock" for path in folder.path.iterdir()):
        return
    if point is not None and folder.manifest_path.is_file():
        manifest = folder.read_manifest()
        if manifest["kind"] == "blend" and manifest.get("blend") == _describe_point(ends, point):
            return
    raise DpotoolError(
        "the output folder is not empty" if point is None else "holds something else than this blend",
        where=str(folder.path),
        remedy="Choose another folder",
    )


def _describe_point(ends: Ends, point: Point) -> dict[str, Any]:
    models = [str(find_place(model)) if Path(model).exists() else model for model in ends.models]
    return {"first": models[0], "second": models[1], "weight": point.weight, "lambda": point.lambda_}


def _load(subject: Subject, progress: Progress, model: str) -> nn.Module:
    config = subject.config
    return load_model(
        model, dtype=subject.dtype, device=config.device, trust_remote_code=config.trust_remote_code, progress=progress
    )


def _prepare(ends: Ends, subject: Subject, progress: Progress) -> _Setting:
    """Loads tokenizer and pairs, and scores the reference."""
    config, trust = subject.config, subject.config.trust_remote_code
    tokenizer, other = (load_tokenizer(model, trust_remote_code=trust, progress=progress) for model in ends.models)
    check_same_tokenizer(tokenizer, other, ends.models)
    model = _load(subject, progress, ends.owner)
    max_length = resolve_max_length(config.max_length, model, tokenizer)
    subject = replace(subject, dtype=str(next(model.parameters()).dtype).removeprefix("torch."))
    pair_set = load_pair_set(config, tokenizer, max_length=max_length, seed=config.seed, progress=progress)
    check_token_ids(model, pair_set.pairs, tokenizer, where=ends.owner)
    del model
    if subject.reference is None:
        return _Setting(subject, tokenizer, pair_set, max_length, None)
    check_same_tokens(tokenizer, subject.reference, pair_set.pairs, trust_remote_code=trust)
    reference = _load(subject, progress, subject.reference).requires_grad_(requires_grad=False)
    check_token_ids(reference, pair_set.pairs, tokenizer, where=subject.reference)
    scorer = Scorer.configured(reference, config, bf16=subject.bf16, label=subject.reference)
    opened = OpenSubject(subject, tokenizer, scorer, scorer, pair_set, max_length)
    logps = opened.compute_reference_logps(progress)
    assert logps is not None
    subject = replace(subject, reference_fingerprint=None)  # that it is another one was said above, once
    if pair_set.pairs and len(find_non_finite(logps)) == len(pair_set.pairs):
        refuse_non_finite(reference, pair_set.pairs, logps, "the reference")
    return _Setting(subject, tokenizer, pair_set, max_length, _ScoredReference(scorer, pair_set.pairs, logps))


def _score_point(
    setting: _Setting,
    ends: Ends,
    point: Point,
    folder: RunFolder,
    line: WeightLine,
    config: BlendConfig,
    progress: Progress,
) -> ScoreResult:
    """Scores one point; when this returns, its model is gone."""
    progress.note(
        f"{point.label}: {1 - point.weight:.3g} of {ends.models[0]} and {point.weight:.3g} of {ends.models[1]}"
    )
    model = line.at(point.weight)
    settings = replace(setting.subject.config, output=str(folder.path))
    subject = replace(setting.subject, model=str(folder.path), label=point.label, folder=folder, config=settings)
    if config.write is not None and PartialState().is_main_process:
        save_checkpoint(model, setting.tokenizer, folder.path)
    scorer = Scorer.configured(model, settings, bf16=subject.bf16, label=point.label)
    opened = OpenSubject(subject, setting.tokenizer, scorer, setting.reference, setting.pair_set, setting.max_length)
    if PartialState().is_main_process:
        folder.write_manifest(_build_manifest(setting, ends, point))
    how = ScoreConfig(noise_floor=False, seed=settings.seed, format=settings.format)
    result = score_opened(opened, how, choose_measures(""), progress, command="blend")
    if PartialState().is_main_process:
        folder.update_manifest(status="finished")
    return result


def _build_manifest(setting: _Setting, ends: Ends, point: Point) -> dict[str, Any]:
    """Returns what a training run's manifest has, so that `score` and others know reference, pairs and beta."""
    subject, source = setting.subject, setting.pair_set.source
    run = next((run for run in ends.runs if run is not None), None)
    own = subject.config.to_dict()
    settings = {name: own[name] for name in own if name not in ("output", "write", "at", "device", "trust_remote_code")}
    settings |= {f"eval_{name}": own[name] for name in ("data", "split", "limit")}
    settings |= {"model": run["config"].get("model") if run else subject.reference, "reference": subject.reference}
    settings |= {"beta": subject.beta, "dtype": subject.dtype, "bf16": subject.bf16, "max_length": setting.max_length}
    settings |= {"loss": "blend", "lambda_": point.lambda_, "weight": f"{point.weight:g}"}
    reference = None if setting.reference is None else setting.reference.fingerprint
    prints = {**((run or {}).get("fingerprints") or {}), "reference": reference}
    manifest = collect_manifest("blend", settings, fingerprints=prints, data=asdict(source))
    return manifest | {"blend": _describe_point(ends, point)}
