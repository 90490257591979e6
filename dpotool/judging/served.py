"""Answers from a server: every turn of every question is one request, stored with its reply."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpotool.data.pairs import hash_prompt
from dpotool.errors import DpotoolError
from dpotool.judging.answers import Answer
from dpotool.judging.endpoint import Endpoint, Reply
from dpotool.judging.prompting import build_body
from dpotool.judging.questions import Question
from dpotool.judging.replies import Request, gather_replies
from dpotool.progress import Progress
from dpotool.settings.answers import GenerateConfig

_SEED_BITS = 31


def read_endpoint(config: Any, model: str) -> Endpoint:
    """Returns the server that settings name.

    Raises:
        DpotoolError: none is named, or a number is out of range.
    """
    if config.endpoint is None:
        raise DpotoolError("a server is needed", where="--endpoint", remedy="Name its address, which ends in /v1")
    for name, least in (("concurrency", 1), ("attempts", 1), ("timeout", 0.001)):
        if getattr(config, name) < least:
            raise DpotoolError("is out of range", where=f"--{name}", got=str(getattr(config, name)))
    return Endpoint(config.endpoint, model, config.timeout, config.attempts, config.concurrency)


def ask_questions(
    questions: Sequence[Question], config: GenerateConfig, path: Path, progress: Progress
) -> tuple[list[Answer], dict[str, int]]:
    """Returns an answer for each question and sample that the server answered, and how many it did not, by reason."""
    served = str(config.served_model)
    settings = {"max_tokens": config.max_new_tokens or 512, "temperature": config.temperature, "top_p": config.top_p}
    settings = {name: value for name, value in settings.items() if value is not None}
    jobs = [(question, sample) for question in questions for sample in range(config.samples)]
    turns: dict[tuple[str, int], list[Reply]] = {(question.question_id, sample): [] for question, sample in jobs}
    endpoint = read_endpoint(config, served)
    for turn in range(max(len(question.turns) for question in questions)):
        open_jobs = [job for job in jobs if turn < len(job[0].turns) and _is_open(turns[job[0].question_id, job[1]])]
        requests = [_request(*job, turns[job[0].question_id, job[1]], settings, config) for job in open_jobs]
        replies = gather_replies(requests, endpoint, path, progress)
        for job, reply in zip(open_jobs, replies, strict=True):
            turns[job[0].question_id, job[1]].append(reply)
    return _collect(jobs, turns, served, settings)


def _is_open(replies: Sequence[Reply]) -> bool:
    return all(reply.status == "ok" for reply in replies)


def _request(
    question: Question, sample: int, replies: Sequence[Reply], settings: dict[str, Any], config: GenerateConfig
) -> Request:
    path, content = build_body(question, [str(reply.text) for reply in replies])
    name = f"{question.question_id}/{sample}/{len(replies)}"
    digest = hashlib.sha256(f"{config.seed}/{name}".encode()).digest()
    seed = int.from_bytes(digest[:4], "little") >> (32 - _SEED_BITS)
    return Request(name, path, {"model": config.served_model, **content, **settings, "seed": seed})


def _collect(
    jobs: Sequence[tuple[Question, int]],
    turns: dict[tuple[str, int], list[Reply]],
    served: str,
    settings: dict[str, Any],
) -> tuple[list[Answer], dict[str, int]]:
    answers: list[Answer] = []
    left_out: dict[str, int] = {}
    for question, sample in jobs:
        replies = turns[question.question_id, sample]
        bad = next((reply.status for reply in replies if reply.status != "ok"), None)
        if bad is not None:
            left_out[bad] = left_out.get(bad, 0) + 1
            continue
        prompt = hash_prompt(list(question.turns))  # type: ignore[arg-type]
        identity = json.dumps([served, settings, prompt, sample], sort_keys=True, default=str)
        answers.append(
            Answer(
                question.question_id,
                tuple(str(reply.text) for reply in replies),
                sample,
                tuple(reply.completion_tokens for reply in replies),
                tuple(reply.finish for reply in replies),
                model=served,
                key=hashlib.sha256(identity.encode()).hexdigest()[:16],
                question=question,
                settings={"endpoint": True, **settings},
            )
        )
    return answers, left_out
