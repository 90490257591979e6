"""`dpotool generate`: models on questions, their answers to answers/<questions>.jsonl, a summary beside each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from dpotool.compare.runs_table import expand_sweeps
from dpotool.errors import DpotoolError, find_place
from dpotool.judging.answer_summary import summarize_answers
from dpotool.judging.answers import Answer, label_folder, open_answers
from dpotool.judging.generation import resolve_decoding
from dpotool.judging.lines import write_lines
from dpotool.judging.local import Answerer
from dpotool.judging.prompting import PromptEncoder
from dpotool.judging.questions import QuestionSet, load_questions
from dpotool.judging.served import ask_questions
from dpotool.models.determinism import resolve_max_length
from dpotool.models.identity import fingerprint_model
from dpotool.models.loading import load_model, load_tokenizer
from dpotool.models.subject import Subject, describe_subject
from dpotool.progress import SILENT, Progress
from dpotool.runs.folder import RunFolder
from dpotool.runs.locks import claiming, claiming_all
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.summaries import write_summary
from dpotool.settings.answers import GenerateConfig

Logps = dict[tuple[str, int], tuple[float, float, int]]


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """One model's answers."""

    label: str
    answers: list[Answer]
    path: Path | None
    """Where they were written; None for answers that were read."""
    left_out: dict[str, int]
    logps: Logps
    settings: dict[str, Any]
    summary: dict[str, Any]


def expand_models(models: Sequence[str]) -> list[str]:
    """Returns the models, with a sweep's trained runs in the place of its folder."""
    names: list[str] = []
    for model in models:
        folder = RunFolder(Path(model))
        if folder.manifest_path.is_file() and folder.read_manifest()["kind"] == "sweep":
            names += [str(run.path) for run in expand_sweeps([model]) if run.read_manifest()["kind"] == "train"]
        else:
            names.append(model)
    return list(dict.fromkeys(names))


def generate_answers(
    models: Sequence[str], config: GenerateConfig, *, progress: Progress = SILENT
) -> list[GenerateResult]:
    """Answers the questions with each model, and compares each with the baseline's answers.

    Args:
        models: run folders, checkpoints or hub ids; or a file with the answers of a model.

    Raises:
        DpotoolError: a model, the questions or the server cannot be used; answers before it stay on file.
    """
    _check(models, config)
    read = [_read(model) for model in models if Path(model).is_file()]
    models = [model for model in models if not Path(model).is_file()]
    if config.endpoint is not None:
        results = [_ask_server(config, progress)]
    else:
        settings, needs_pairs = config.to_subject_settings(), config.questions is None
        subjects = [describe_subject(model, settings, needs_pairs=needs_pairs) for model in models]
        if len({find_place(subject.folder.path) for subject in subjects}) < len(subjects):
            raise DpotoolError(
                "two models would write the same answers",
                where="generate",
                remedy="Generate them apart, each with its own --output",
            )
        with claiming_all((subject.folder.path for subject in subjects), "generate", progress.note):
            results = [_answer(subject, config, progress) for subject in subjects]
    return _summarize([*read, *results], config)


def _read(path: str) -> GenerateResult:
    """Answers made elsewhere, or before; they are summarised and nothing is written."""
    found = open_answers(path)
    settings = {"answers": path}
    return GenerateResult(found.label, found.answers, None, {}, {}, settings, {})


def _check(models: Sequence[str], config: GenerateConfig) -> None:
    if (config.endpoint is None) != (config.served_model is None):
        raise DpotoolError("--endpoint and --served-model belong together", remedy="Give both, or neither")
    if config.endpoint is not None and models:
        raise DpotoolError(
            "models that run here and a server are asked apart", got=", ".join(models), remedy="Leave one out"
        )


def _answer(subject: Subject, config: GenerateConfig, progress: Progress) -> GenerateResult:
    trust = config.trust_remote_code
    tokenizer = load_tokenizer(subject.model, trust_remote_code=trust)
    model = load_model(
        subject.model, dtype=subject.dtype, device=config.device, trust_remote_code=trust, progress=progress
    )
    max_length = resolve_max_length(subject.config.max_length, model, tokenizer)
    decoding = resolve_decoding(model, tokenizer, config, max_length)
    if config.samples > 1 and not decoding.is_sampling:
        raise DpotoolError(
            "all samples of greedy decoding are the same", where="--samples", remedy="Pass --temperature, e.g. 0.7"
        )
    asked = load_questions(subject.config, config.questions, config.references, config.seed)
    label = label_folder(subject.folder) if subject.folder.path == Path(subject.model) else subject.label
    answerer = Answerer(
        label,
        model,
        fingerprint_model(model),
        tokenizer,
        PromptEncoder(tokenizer),
        decoding,
        max_length,
        config.batch_tokens,
    )
    path = subject.folder.table_path("answer", asked.name, format="jsonl")
    answers, left_out = answerer.answer_all(asked.questions, config.samples, path, progress, overwrite=config.overwrite)
    logps = _score(answerer, subject, answers, config, progress) if config.logps else {}
    settings = {**decoding.to_dict(), "model": subject.model, "fingerprint": answerer.fingerprint}
    settings["reference"] = subject.reference
    resolved = replace(config, dtype=str(model.dtype).removeprefix("torch."))
    _write(path, answers, subject.folder, resolved, asked)
    return GenerateResult(label, answers, path, left_out, logps, settings, {})


def _score(
    answerer: Answerer,
    subject: Subject,
    answers: Sequence[Answer],
    config: GenerateConfig,
    progress: Progress,
) -> Logps:
    """log pi and log pi_ref of the answers; NaN for the second where there is no reference."""
    progress.note(f"{answerer.name}: scoring the answers under policy and reference")
    policy = answerer.score(answerer.model, answers)
    reference = dict.fromkeys(policy, (float("nan"), 0))
    if subject.reference is not None:
        dtype = str(next(answerer.model.parameters()).dtype).removeprefix("torch.")
        model = load_model(
            subject.reference,
            dtype=dtype,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            progress=progress,
        )
        reference = answerer.score(model, answers)
    return {name: (total, reference[name][0], n) for name, (total, n) in policy.items()}


def _ask_server(config: GenerateConfig, progress: Progress) -> GenerateResult:
    name = str(config.served_model).replace("/", "--").replace(":", "-")
    folder = RunFolder(Path(config.output or f"runs/{name}"))
    settings = replace(config.to_subject_settings(), data=config.data or "builtin:demo")
    asked = load_questions(settings, config.questions, config.references, config.seed)
    path = folder.table_path("answer", asked.name, format="jsonl")
    with claiming(folder.path, "generate", progress.note):
        answers, left_out = ask_questions(asked.questions, config, path.with_suffix(".replies.jsonl"), progress)
        if not answers:
            raise DpotoolError(
                "the server gave no answer", where=str(config.endpoint), got=", ".join(left_out), remedy="See its log"
            )
        _write(path, answers, folder, config, asked)
    return GenerateResult(folder.name, answers, path, left_out, {}, {"served_model": config.served_model}, {})


def _write(
    path: Path, answers: Sequence[Answer], folder: RunFolder, config: GenerateConfig, asked: QuestionSet
) -> None:
    if not PartialState().is_main_process:
        return
    write_lines(path, [answer.to_row() for answer in answers])
    holds_model = any((folder.path / name).is_file() for name in ("config.json", "adapter_config.json"))
    if not folder.manifest_path.exists() and not holds_model:  # a checkpoint from elsewhere stays what it was
        settings = {**config.to_dict(), "model": answers[0].model, "questions_name": asked.name}
        folder.write_manifest(collect_manifest("generate", settings) | {"status": "finished"})


def _summarize(results: Sequence[GenerateResult], config: GenerateConfig) -> list[GenerateResult]:
    base = choose_baseline([result.label for result in results], config.baseline)
    summarized = []
    for place, result in enumerate(results):
        others = results[base].answers if place != base else None
        summary = summarize_answers(result.answers, others, result.logps, seed=config.seed)
        summary |= {
            "label": result.label,
            "baseline": None if others is None else results[base].label,
            "left_out": result.left_out,
            "settings": result.settings,
        }
        if result.path is not None and PartialState().is_main_process:
            write_summary(result.path, summary)
        summarized.append(replace(result, summary=summary))
    return summarized


def choose_baseline(labels: Sequence[str], asked: str | None, *, last: bool = False) -> int:
    """Returns the index of the baseline: the label given, else DPO, else the first (or the last).

    Raises:
        DpotoolError: none has the label given, or several do.
    """
    if asked is None:
        found = [place for place, label in enumerate(labels) if label == "DPO"]
        return found[0] if found else len(labels) - 1 if last else 0
    found = [place for place, label in enumerate(labels) if label == asked]
    if len(found) != 1:
        raise DpotoolError(
            f"{'no' if not found else 'more than one'} model is called {asked!r}",
            where="--baseline",
            expected=" or ".join(labels),
        )
    return found[0]
