"""`dpotool judge`: answers against a baseline's by one judge, or judgments made elsewhere, with summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from dpotool.compare.win_rates import note_adjusted, summarize_judgments
from dpotool.data.demo_reading import read_prompt
from dpotool.errors import DpotoolError, find_place
from dpotool.judging.answering import choose_baseline
from dpotool.judging.answers import Answer, AnswerSet, match_answers, open_answers
from dpotool.judging.asking import Pairs, build_requests, judge_by_score, judge_by_server
from dpotool.judging.imports import Imported, import_judgments
from dpotool.judging.judges import JudgeKind, choose_judge, name_judge
from dpotool.judging.judgments import Judgment, are_identical, build_judgment_frame, tie_identical
from dpotool.judging.prompts import PAIRWISE, open_prompts
from dpotool.judging.questions import read_questions
from dpotool.judging.replies import ReplyBook, Request
from dpotool.progress import SILENT, Progress
from dpotool.runs.folder import RunFolder
from dpotool.runs.manifest import collect_manifest
from dpotool.runs.schemas import JUDGMENT_SCHEMA
from dpotool.runs.summaries import write_summary
from dpotool.runs.tables import write_table
from dpotool.settings.answers import JudgeConfig
from dpotool.wording import count

REPLIES = ".replies.jsonl"
"""Ending of the file with all replies, beside the table made of them."""
JUDGED_FOLDER = "runs/judged"
"""Where judgments on answers lie that belong to no run folder."""


@dataclass(frozen=True, slots=True)
class JudgeResult:
    """The verdicts or grades of one model's answers."""

    label: str
    frame: pd.DataFrame
    summary: dict[str, Any]
    path: Path


@dataclass(frozen=True, slots=True)
class AskingPlan:
    """The requests that judging would send."""

    label: str
    n_answers: int
    n_identical: int
    """Answers that are the baseline's word for word: a tie without asking."""
    n_there: int
    """Replies on file already."""
    n_requests: int
    characters: int
    """Of all prompts that would be sent."""


def judge_answers(names: Sequence[str], config: JudgeConfig, *, progress: Progress = SILENT) -> list[JudgeResult]:
    """Judges each set of answers against the baseline's.

    Args:
        names: run folders with answers, or files of them.

    Raises:
        DpotoolError: answers, questions or the judge cannot be used; replies that came stay on file.
    """
    sets, base = open_sets(names, config)
    others = [each for place, each in enumerate(sets) if place != base]
    judge = choose_judge(config, _is_demo(sets))
    if judge.compares:
        _warn_of_one_order(config, progress)
    judging = _Judging(judge, config, progress)
    results = []
    for ours in others:
        pairs, n_unmatched = _pair(ours, sets[base], config)
        if n_unmatched:
            progress.warn(
                f"{ours.label}: {count(n_unmatched, 'answer has', 'answers have')} no counterpart in "
                f"{sets[base].label}'s"
            )
        path = place_table("judgment", ours, config, "vs", sets[base].label, judging.name)
        rows = judging.judge(pairs, path)
        about = {**judging.about, "baseline": sets[base].label, "label": ours.label, "unmatched": n_unmatched}
        about["questions"] = name_questions(ours, config)
        results.append(_summarize(ours.label, rows, path, about, config))
    return _write(results, config)


def plan_asking(names: Sequence[str], config: JudgeConfig) -> list[AskingPlan]:
    """Returns what a server would be asked about each model, without asking.

    Raises:
        DpotoolError: the judgments are read from a file, or settings or answers cannot be used.
    """
    if config.judgments is not None:
        raise DpotoolError(
            "no judge is asked when judgments are read", where="--judgments", remedy="Leave --dry-run out"
        )
    sets, base = open_sets(names, config)
    judge = choose_judge(config, _is_demo(sets))
    prompts = open_prompts(config.prompt, PAIRWISE, config.verdict_rule)
    plans = []
    for place, ours in enumerate(sets):
        if place == base:
            continue
        pairs, _ = _pair(ours, sets[base], config)
        different, same = _split(pairs)
        requests = build_requests(different, prompts, config) if judge.compares else []
        path = place_table("judgment", ours, config, "vs", sets[base].label, name_judge(judge, config))
        plans.append(plan_requests(ours.label, len(pairs), len(same), requests, path))
    return plans


def plan_requests(label: str, n_answers: int, n_identical: int, requests: Sequence[Request], path: Path) -> AskingPlan:
    """Returns the plan for requests of which some may be answered in the replies beside `path`."""
    book = ReplyBook(path.with_suffix(REPLIES))
    missing = [request for request in requests if book.find(request) is None]
    characters = sum(len(request.text) for request in missing)
    return AskingPlan(label, n_answers, n_identical, len(requests) - len(missing), len(missing), characters)


class _Judging:
    """One judge with what it needs, for every model."""

    def __init__(self, judge: JudgeKind, config: JudgeConfig, progress: Progress) -> None:
        self.kind, self.config, self.progress = judge, config, progress
        self.name = name_judge(judge, config)
        self.about: dict[str, Any] = {"judge": self.name, "judge_kind": judge.name, "caveat": judge.caveat}
        self.about["is_proxy"] = judge.is_proxy
        if judge.open is not None:
            self._score = judge.open(config, progress)
            return
        self._prompts = open_prompts(config.prompt, PAIRWISE, config.verdict_rule)
        self.about |= {"prompt": self._prompts.name, "prompt_source": self._prompts.plain.source}
        self.about["orders"] = 1 if config.one_order else 2

    def judge(self, pairs: Pairs, path: Path) -> list[Judgment]:
        """Returns the rows for all pairs, those with the same answer twice as ties."""
        different, same = _split(pairs)
        if self.kind.open is not None:
            return [*judge_by_score(self._score, different), *tie_identical(same)]
        replies = path.with_suffix(REPLIES)
        judged = judge_by_server(different, self._prompts, self.config, replies, self.progress)
        return [*judged, *tie_identical(same)]


def open_sets(names: Sequence[str], config: JudgeConfig, fewest: int = 2) -> tuple[list[AnswerSet], int]:
    """Returns the answers, with their questions, and which of them are the baseline's.

    Raises:
        DpotoolError: fewer than two, or a set is named twice.
    """
    sets = [_with_questions(open_answers(name, config.data), config) for name in names]
    if len(sets) < fewest:
        raise DpotoolError(
            "two sets of answers are needed, a model's and a baseline's" if fewest > 1 else "answers are needed",
            where="judge",
            got=", ".join(names) or "none",
            remedy="Name two or more run folders with answers, or files of them",
        )
    sets = _tell_apart(sets)
    return sets, choose_baseline([each.label for each in sets], config.baseline, last=True)


def _tell_apart(sets: list[AnswerSet]) -> list[AnswerSet]:
    """Adds the folder's name to labels that occur twice."""
    labels = [each.label for each in sets]
    if len({find_place(each.path) for each in sets}) < len(sets):
        raise DpotoolError("the same answers are named twice", where="judge", got=", ".join(labels))
    return [
        replace(each, label=f"{each.label} ({(each.folder.path if each.folder else each.path.parent).name})")
        if labels.count(each.label) > 1
        else each
        for each in sets
    ]


def _with_questions(answers: AnswerSet, config: JudgeConfig) -> AnswerSet:
    if config.questions is None:
        return answers
    known = {question.question_id: question for question in read_questions(config.questions, config.references)}
    unknown = next((answer.question_id for answer in answers.answers if answer.question_id not in known), None)
    if unknown is not None:
        raise DpotoolError(f"question {unknown} is not in {config.questions}", where=str(answers.path))
    return replace(answers, answers=[replace(a, question=known[a.question_id]) for a in answers.answers])


def _is_demo(sets: Sequence[AnswerSet]) -> bool:
    question = sets[0].answers[0].question
    return question is not None and read_prompt(question.texts[0]) is not None


def _pair(ours: AnswerSet, theirs: AnswerSet, config: JudgeConfig) -> tuple[list[tuple[Answer, Answer]], int]:
    pairs, n_unmatched = match_answers(ours.answers, theirs.answers)
    if not pairs:
        raise DpotoolError("have no question in common", where=f"{ours.path} and {theirs.path}")
    for mine, other in pairs:
        if mine.question and other.question and mine.question.turns != other.question.turns:
            raise DpotoolError(
                f"question {mine.question_id} is not the same in both", where=f"{ours.path} and {theirs.path}"
            )
    return pairs[: config.limit], n_unmatched


def _split(pairs: Pairs) -> tuple[list[tuple[Answer, Answer]], list[tuple[Answer, Answer]]]:
    """Pairs to judge, and pairs of the same answer."""
    same = [are_identical(*pair) for pair in pairs]
    return (
        [pair for pair, is_same in zip(pairs, same, strict=True) if not is_same],
        [pair for pair, is_same in zip(pairs, same, strict=True) if is_same],
    )


def _warn_of_one_order(config: JudgeConfig, progress: Progress) -> None:
    if config.one_order:
        progress.warn(
            "--one-order: the model's answer is always shown first, so the win rate includes the judge's position bias"
        )


def place_table(kind: str, answers: AnswerSet, config: JudgeConfig, *parts: str) -> Path:
    """Returns where what was made of a model's answers is written: in its run folder, or by its label elsewhere."""
    folder = RunFolder(Path(config.output)) if config.output else answers.folder or RunFolder(Path(JUDGED_FOLDER))
    return folder.table_path(kind, answers.name if folder is answers.folder else answers.label, *parts)


def name_questions(answers: AnswerSet, config: JudgeConfig) -> str | None:
    """Returns what the questions are called; None where a file of answers does not say."""
    if config.questions is not None:
        return Path(config.questions).name.split(".jsonl")[0]
    return answers.name if answers.folder is not None else None


def _summarize(
    label: str, rows: Sequence[Judgment], path: Path, about: dict[str, Any], config: JudgeConfig
) -> JudgeResult:
    frame = build_judgment_frame(rows)
    return JudgeResult(label, frame, {**about, **summarize_judgments(frame, seed=config.seed)}, path)


def _write(results: list[JudgeResult], config: JudgeConfig) -> list[JudgeResult]:
    """Corrects the p-values over all models, and writes table and summary of each."""
    note_adjusted([result.summary for result in results])
    paths = [result.path for result in results]
    if len(set(paths)) < len(paths):
        raise DpotoolError("two models would write the same judgments", where=str(paths[0]), remedy="Judge them apart")
    for result in results:
        names = ("label", "baseline", "judge", "judge_kind", "caveat", "is_proxy", "questions")
        about = {key: result.summary[key] for key in names}
        write_result(result.frame, result.path, JUDGMENT_SCHEMA, about, result.summary, config)
    return results


def write_result(
    frame: pd.DataFrame,
    path: Path,
    schema: pa.Schema,
    about: dict[str, Any],
    summary: dict[str, Any],
    config: JudgeConfig,
) -> None:
    """Writes a table with its summary; a folder that is no run yet becomes one, which `plot` and `report` read."""
    write_table(frame, path, schema, about)
    write_summary(path, summary)
    folder = RunFolder(Path(config.output)) if config.output else RunFolder.of_table(path)
    if not folder.manifest_path.exists():
        folder.write_manifest(collect_manifest("judge", config.to_dict()) | {"status": "finished"})


def import_results(names: Sequence[str], config: JudgeConfig) -> list[JudgeResult]:
    """Reads judgments made elsewhere, with the answers that were judged (the model's, the baseline's) where given.

    Raises:
        DpotoolError: the file is of no known format.
    """
    sets = [_with_questions(open_answers(name, config.data), config) for name in names]
    if len(sets) > 2:
        raise DpotoolError(
            "takes the model's answers and the baseline's", where="--judgments", got=count(len(sets), "set")
        )
    answers = [{answer.question_id: answer for answer in each.answers} for each in sets] + [{}, {}]
    format_, found = import_judgments(str(config.judgments), answers[0], answers[1])
    stem = Path(str(config.judgments)).name.split(".json")[0]
    sides = stem.split("-vs-") if stem.count("-vs-") == 1 else ["model", "baseline"]
    labels = [each.label for each in sets] + sides[len(sets) :]
    results = []
    for imported in found:
        model, baseline = imported.model or labels[0], imported.baseline or labels[1]
        folder = RunFolder(Path(config.output or JUDGED_FOLDER))
        path = folder.table_path(
            "judgment", stem if len(found) == 1 else f"{stem}-{model}", "vs", baseline, imported.judge
        )
        results.append(
            _summarize(model, imported.judgments, path, _describe(imported, model, baseline, format_.name), config)
        )
    return _write(results, config)


def _describe(imported: Imported, model: str, baseline: str, format_name: str) -> dict[str, Any]:
    about = {"label": model, "baseline": baseline, "judge": imported.judge, "judge_kind": "import"}
    return {**about, "caveat": f"read from {format_name}", "is_proxy": False, "unmatched": 0, "questions": None}
