"""Shows pairs of answers to a judge, in both orders by default, with all replies stored and all rows accounted for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpotool.errors import DpotoolError
from dpotool.judging.answers import Answer
from dpotool.judging.endpoint import CHAT, Reply
from dpotool.judging.judges import Score
from dpotool.judging.judgments import (
    APART,
    FIRST,
    JUDGED,
    ORDERS,
    Judgment,
    judge_scores,
    judge_verdict,
)
from dpotool.judging.prompt_length import CountTokens
from dpotool.judging.prompts import JudgePrompt, PromptBook, fill_pair
from dpotool.judging.questions import Question
from dpotool.judging.replies import Request, gather_replies
from dpotool.judging.served import read_endpoint
from dpotool.judging.verdicts import RULES
from dpotool.progress import Progress
from dpotool.settings.answers import JudgeConfig

Pairs = Sequence[tuple[Answer, Answer]]
"""The model's answer and the baseline's to the same question."""


def question_of(answer: Answer) -> Question:
    """Returns the question an answer belongs to.

    Raises:
        DpotoolError: the answers come without their questions, and none were given.
    """
    if answer.question is None:
        raise DpotoolError(
            "the answers do not hold their questions", where=f"question {answer.question_id}", remedy="Name --questions"
        )
    return answer.question


def judge_by_score(score: Score, pairs: Pairs) -> list[Judgment]:
    """Returns a row for each pair: the higher score wins. A pair without a score for both has no verdict."""
    questions = [question_of(ours) for ours, _ in pairs]
    ours = score([(question, pair[0]) for question, pair in zip(questions, pairs, strict=True)])
    theirs = score([(question, pair[1]) for question, pair in zip(questions, pairs, strict=True)])
    return [_scored(pair, *scores) for pair, *scores in zip(pairs, ours, theirs, strict=True)]


def _scored(pair: tuple[Answer, Answer], model: float | None, baseline: float | None) -> Judgment:
    if model is None or baseline is None:
        status, said = "the judge has nothing to go by", None
    else:
        status, said = JUDGED, judge_scores(model, baseline)
    return Judgment.between(*pair, APART, status, said, model_score=model, baseline_score=baseline)


def build_requests(pairs: Pairs, prompts: PromptBook, config: JudgeConfig) -> list[Request]:
    """Returns the requests to a server: one for each pair, or two with the answers in both orders.

    Raises:
        DpotoolError: the prompt needs reference answers, and a question has none.
    """
    orders = ORDERS[:1] if config.one_order else ORDERS
    return [_build_request(pair, order, prompts, config) for pair in pairs for order in orders]


def _build_request(pair: tuple[Answer, Answer], order: str, prompts: PromptBook, config: JudgeConfig) -> Request:
    question = question_of(pair[0])
    prompt = _choose(prompts, question)
    shown = pair if order == FIRST else pair[::-1]
    messages = fill_pair(prompt, question.texts, question.references, *(_trimmed(answer) for answer in shown))
    return Request(f"{question.question_id}/{pair[0].sample}/{order}", CHAT, build_judge_body(messages, config))


def build_judge_body(messages: Sequence[Any], config: JudgeConfig) -> dict[str, Any]:
    """Returns the body of a request to a judge: greedy, and short."""
    return {
        "model": config.judge_model,
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": config.judge_max_tokens,
    }


def _choose(prompts: PromptBook, question: Question) -> JudgePrompt:
    prompt = prompts.choose(len(question.turns), bool(question.references))
    if prompt.needs_reference and not question.references:
        raise DpotoolError(
            "the prompt shows a reference answer, and this question has none",
            where=f"question {question.question_id}",
            remedy="Name --references, or a prompt without: --prompt mt-bench",
        )
    return prompt


def _trimmed(answer: Answer) -> list[str]:
    return [turn.strip() for turn in answer.turns]


def judge_by_server(
    pairs: Pairs, prompts: PromptBook, config: JudgeConfig, path: Path, progress: Progress
) -> list[Judgment]:
    """Asks a server about each pair and returns a row for each request, whatever became of it."""
    requests = build_requests(pairs, prompts, config)
    replies = ask_judge(requests, config, path, progress)
    orders = ORDERS[:1] if config.one_order else ORDERS
    rows = [(pair, order) for pair in pairs for order in orders]
    return [_read(reply, *row, prompts) for reply, row in zip(replies, rows, strict=True)]


def ask_judge(requests: Sequence[Request], config: JudgeConfig, path: Path, progress: Progress) -> list[Reply]:
    """Returns the judge's reply to each request, sending only those that the file at `path` lacks."""
    endpoint = read_endpoint(config, str(config.judge_model))
    return gather_replies(requests, endpoint, path, progress, _load_counter(config.judge_tokenizer))


def _read(reply: Reply, pair: tuple[Answer, Answer], order: str, prompts: PromptBook) -> Judgment:
    if reply.status != "ok":
        return Judgment.between(*pair, order, reply.status, None)
    verdict = RULES[_choose(prompts, question_of(pair[0])).rule](str(reply.text))
    said = judge_verdict(verdict, order)
    return Judgment.between(*pair, order, verdict.problem or JUDGED, said, is_doubtful=verdict.is_doubtful)


@functools.cache
def _load_counter(name: str | None) -> CountTokens | None:
    """Returns what counts the tokens of a text by the judge's tokenizer; None where none is named.

    The text alone, without the template around it: the server read at least as many.
    """
    if name is None:
        return None
    from dpotool.models.loading import load_tokenizer

    tokenizer = load_tokenizer(name)
    return lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
