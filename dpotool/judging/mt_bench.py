"""MT-Bench: every answer of two turns graded separately, 1 to 10, or FastChat's grades read; a table for each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dpotool.compare.ratings import compare_ratings, summarize_ratings
from dpotool.errors import DpotoolError
from dpotool.judging.answering import choose_baseline
from dpotool.judging.answers import Answer, AnswerSet
from dpotool.judging.asking import ask_judge, build_judge_body, question_of
from dpotool.judging.endpoint import CHAT, Reply
from dpotool.judging.imports import import_ratings
from dpotool.judging.judges import JUDGES, choose_judge, name_judge
from dpotool.judging.judgments import JUDGED
from dpotool.judging.prompts import SINGLE, PromptBook, fill_single, open_prompts
from dpotool.judging.questions import Question, read_questions
from dpotool.judging.replies import Request
from dpotool.judging.run import (
    JUDGED_FOLDER,
    REPLIES,
    AskingPlan,
    JudgeResult,
    name_questions,
    open_sets,
    place_table,
    plan_requests,
    write_result,
)
from dpotool.judging.verdicts import RULES, Verdict
from dpotool.progress import SILENT, Progress
from dpotool.runs.folder import RunFolder
from dpotool.runs.schemas import RATING_SCHEMA
from dpotool.settings.answers import JudgeConfig

BENCHES = ("mt-bench",)


def grade_answers(names: Sequence[str], config: JudgeConfig, *, progress: Progress = SILENT) -> list[JudgeResult]:
    """Grades each answer and turn of each model, and sets the models beside the baseline.

    Raises:
        DpotoolError: there is no such bench, the judge scores in another way, or answers or questions cannot be used.
    """
    sets, base, prompts, about = _open(names, config)
    frames, paths = {}, {}
    for each in sets:
        path = paths[each.label] = place_table("rating", each, config, about["judge"])
        jobs, requests = _build_requests(each, prompts, config)
        replies = ask_judge(requests, config, path.with_suffix(REPLIES), progress)
        rows = [_row(question_of(job[0]), job[1], reply) for job, reply in zip(jobs, replies, strict=True)]
        frames[each.label] = pd.DataFrame(rows)
    return _write(frames, paths, sets[base].label, about, config)


def plan_grading(names: Sequence[str], config: JudgeConfig) -> list[AskingPlan]:
    """Returns the requests that a server would get about each model, without sending them."""
    sets, _, prompts, about = _open(names, config)
    plans = []
    for each in sets:
        jobs, requests = _build_requests(each, prompts, config)
        path = place_table("rating", each, config, about["judge"])
        plans.append(plan_requests(each.label, len(jobs), 0, requests, path))
    return plans


def _open(names: Sequence[str], config: JudgeConfig) -> tuple[list[AnswerSet], int, PromptBook, dict[str, Any]]:
    """The answers, the place of the baseline's, the prompts, and what a summary says of the judge."""
    check_bench(config.bench)
    sets, base = open_sets(names, config, fewest=1)
    judge = choose_judge(config, is_demo=False)
    if not judge.compares:
        raise DpotoolError("grades on another scale", where=f"--judge {judge.name}", expected="endpoint")
    prompts = open_prompts(config.prompt, SINGLE, config.verdict_rule)
    about = {"judge": name_judge(judge, config), "judge_kind": judge.name, "caveat": judge.caveat}
    about |= {"prompt": prompts.name, "prompt_source": prompts.plain.source}
    return sets, base, prompts, {**about, "questions": name_questions(sets[base], config)}


def check_bench(bench: str | None) -> None:
    """Raises a DpotoolError for an unknown bench."""
    if bench not in BENCHES:
        raise DpotoolError("unknown bench", where="--bench", expected=", ".join(BENCHES), got=repr(bench))


def _build_requests(
    answers: AnswerSet, prompts: PromptBook, config: JudgeConfig
) -> tuple[list[tuple[Answer, int]], list[Request]]:
    """Every answer and turn, with the request about each."""
    jobs = [(answer, turn) for answer in answers.answers[: config.limit] for turn in range(len(answer.turns))]
    return jobs, [_build_request(*job, prompts, config) for job in jobs]


def _build_request(answer: Answer, turn: int, prompts: PromptBook, config: JudgeConfig) -> Request:
    question = question_of(answer)
    prompt = prompts.choose(turn + 1, bool(question.references))
    messages = fill_single(
        prompt,
        question.texts[: turn + 1],
        question.references[: turn + 1],
        [text.strip() for text in answer.turns[: turn + 1]],
    )
    return Request(f"{question.question_id}/{answer.sample}/turn-{turn + 1}", CHAT, build_judge_body(messages, config))


def _row(question: Question, turn: int, reply: Reply) -> dict[str, Any]:
    verdict = RULES["rating"](str(reply.text)) if reply.status == "ok" else Verdict(None, problem=reply.status)
    return {
        "question_id": question.question_id,
        "turn": turn + 1,
        "status": JUDGED if verdict.rating is not None else verdict.problem,
        "rating": verdict.rating,
        "category": question.category,
    }


def import_grades(config: JudgeConfig) -> list[JudgeResult]:
    """Reads FastChat's single grading; categories come from --questions."""
    check_bench(config.bench)
    known = {q.question_id: q.category for q in read_questions(config.questions)} if config.questions else {}
    judge, frames = import_ratings(str(config.judgments), known)
    labels = list(frames)
    folder = RunFolder(Path(config.output or JUDGED_FOLDER))
    paths = {label: folder.table_path("rating", label, judge) for label in labels}
    about = {"judge": judge, "judge_kind": "import", "caveat": JUDGES["endpoint"].caveat}
    return _write(frames, paths, labels[choose_baseline(labels, config.baseline, last=True)], about, config)


def _write(
    frames: dict[str, pd.DataFrame], paths: dict[str, Path], baseline: str, about: dict[str, Any], config: JudgeConfig
) -> list[JudgeResult]:
    differences = compare_ratings(frames, baseline, seed=config.seed)
    results = []
    for label, frame in frames.items():
        metadata = {**about, "label": label, "baseline": baseline}
        summary = {**metadata, **summarize_ratings(frame, seed=config.seed), "difference": differences.get(label)}
        write_result(frame, paths[label], RATING_SCHEMA, metadata, summary, config)
        results.append(JudgeResult(label, frame, summary, paths[label]))
    return results
