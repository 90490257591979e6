"""Answers of a model that runs here: what is on file is found again, the rest generated and written batch by batch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpotool.errors import DpotoolError
from dpotool.judging.answers import Answer, read_row
from dpotool.judging.generation import Decoding, Generated, Job, generate_batches, plan_generation
from dpotool.judging.lines import append_lines, read_sound_lines
from dpotool.judging.prompting import PromptEncoder
from dpotool.judging.questions import Question
from dpotool.likelihood.batch import collate_rows
from dpotool.likelihood.budget import plan_batches, resolve_batch_tokens
from dpotool.likelihood.completions import compute_token_logps
from dpotool.progress import Progress
from dpotool.wording import count

TOO_LONG = "the prompt leaves no room for an answer"
Wanted = tuple[Question, int]
"""A question and the number of a sample."""


@dataclass(frozen=True, slots=True)
class Answerer:
    """A model with what it takes to answer questions."""

    name: str
    model: nn.Module
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    encoder: PromptEncoder
    decoding: Decoding
    max_length: int
    batch_tokens: int | str

    def key_of(self, question: Question, sample: int) -> str:
        """Returns a hash of everything that an answer depends on."""
        identity = [
            self.fingerprint,
            self.decoding.to_dict(),
            self.encoder.encode(question, ()),
            question.turns[1:],
            sample,
        ]
        return hashlib.sha256(json.dumps([*identity, question.question_id], default=list).encode()).hexdigest()[:16]

    def answer_all(
        self, questions: Sequence[Question], samples: int, path: Path, progress: Progress, *, overwrite: bool
    ) -> tuple[list[Answer], dict[str, int]]:
        """Returns every answer in the questions' order, generating those that `path` lacks, and how many are missing.

        Raises:
            DpotoolError: the file has answers to these questions made with other settings.
        """
        fitting = [
            q for q in questions if len(self.encoder.encode(q, ())) + self.decoding.max_new_tokens <= self.max_length
        ]
        left_out = {TOO_LONG: len(questions) - len(fitting)} if len(fitting) < len(questions) else {}
        wanted = [(question, sample) for question in fitting for sample in range(samples)]
        keys = {(question.question_id, sample): self.key_of(question, sample) for question, sample in wanted}
        found = read_kept(path, keys, overwrite=overwrite, progress=progress)
        missing = [job for job in wanted if (job[0].question_id, job[1]) not in found]
        if found:
            progress.note(
                f"{self.name}: {len(wanted) - len(missing)} of {count(len(wanted), 'answer')} were there already"
            )
        try:
            for answers in self._generate(missing, keys, progress):
                if PartialState().is_main_process:
                    append_lines(path, [answer.to_row() for answer in answers])
                found |= {(answer.question_id, answer.sample): answer for answer in answers}
        except KeyboardInterrupt:
            if not found:
                raise
            kept = f"{count(len(found), 'answer')} of {len(wanted)} are in {path}"
            raise KeyboardInterrupt(f"{kept}, and the same command generates the rest") from None
        return [found[question.question_id, sample] for question, sample in wanted], left_out

    def _generate(self, wanted: Sequence[Wanted], keys: dict[tuple[str, int], str], progress: Progress) -> Any:
        """Yields answers group by group; a group is one batch, all of its turns. Processes take every n-th group."""
        first = [self._job(wanted_one, ()) for wanted_one in wanted]
        groups = plan_generation(self.model, first, self.decoding.max_new_tokens, self.batch_tokens)
        state = PartialState()
        with progress.track(f"{self.name} answers", len(wanted)) as advance:
            for start in range(0, len(groups), state.num_processes):
                own = groups[start + state.process_index : start + state.process_index + 1]
                answers = [
                    each for group in own for each in self._answer_group([wanted[place] for place in group], keys)
                ]
                answers = gather_object(answers) if state.num_processes > 1 else answers
                advance(len(answers))
                yield answers

    def _job(self, wanted: Wanted, texts: Sequence[str]) -> Job:
        question, sample = wanted
        return Job((question.question_id, sample, len(texts)), self.encoder.encode(question, texts))

    def _answer_group(self, group: Sequence[Wanted], keys: dict[tuple[str, int], str]) -> list[Answer]:
        texts: list[list[str]] = [[] for _ in group]
        made: list[list[Generated]] = [[] for _ in group]
        for turn in range(max(len(question.turns) for question, _ in group)):
            rows = [row for row, (question, _) in enumerate(group) if turn < len(question.turns)]
            jobs = [self._job(group[row], texts[row]) for row in rows]
            for place, generated in self._run(jobs):
                made[rows[place]].append(generated)
                texts[rows[place]].append(self._decode(generated))
        return [self._finish(*each, keys) for each in zip(group, texts, made, strict=True)]

    def _run(self, jobs: Sequence[Job]) -> list[tuple[int, Generated]]:
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.decoding.eos_ids[0] if pad_id is None else pad_id
        longest = max(len(job.prompt_ids) for job in jobs)
        if longest + self.decoding.max_new_tokens > self.max_length:
            raise DpotoolError(
                "a conversation leaves no room for the next answer",
                where=f"question {max(jobs, key=lambda job: len(job.prompt_ids)).name[0]}",
                got=f"{count(longest, 'token')} before it, of {self.max_length}",
                remedy="Raise --max-length or lower --max-new-tokens",
            )
        batches = generate_batches(self.model, jobs, self.decoding, batch_tokens=self.batch_tokens, pad_id=pad_id)
        return [each for batch in batches for each in batch]

    def _decode(self, generated: Generated) -> str:
        return str(self.tokenizer.decode(list(generated.token_ids), skip_special_tokens=True)).strip()

    def _finish(
        self, wanted: Wanted, texts: list[str], made: list[Generated], keys: dict[tuple[str, int], str]
    ) -> Answer:
        question, sample = wanted
        return Answer(
            question.question_id,
            tuple(texts),
            sample,
            tuple(len(each.token_ids) for each in made),
            tuple(each.finish for each in made),
            tuple(each.token_ids for each in made),
            model=self.name,
            key=keys[question.question_id, sample],
            question=question,
            settings=self.decoding.to_dict(),
        )

    def score(self, model: nn.Module, answers: Sequence[Answer]) -> dict[tuple[str, int], tuple[float, int]]:
        """Returns log pi of each answer under a model (nats, summed over the tokens of all turns) and their number.

        Raises:
            DpotoolError: an answer has tokens that the model does not know.
        """
        rows, owners = [], []
        n_known = len(cast(Any, model).get_input_embeddings().weight)
        for answer in answers:
            assert answer.question is not None
            for turn, ids in enumerate(answer.token_ids):
                if max(ids, default=0) >= n_known:
                    where, remedy = f"question {answer.question_id}", "Generate the answers again"
                    raise DpotoolError("was answered with tokens that the model has not", where=where, remedy=remedy)
                rows.append((self.encoder.encode(answer.question, answer.turns[:turn]), ids))
                owners.append((answer.question_id, answer.sample))
        sums: dict[tuple[str, int], tuple[float, int]] = {}
        for place, total in _sum_logps(model, rows, self.batch_tokens):
            before = sums.get(owners[place], (0.0, 0))
            sums[owners[place]] = (before[0] + total, before[1] + len(rows[place][1]))
        return sums


@torch.no_grad()
def _sum_logps(model: nn.Module, rows: Sequence[tuple[Sequence[int], Sequence[int]]], batch_tokens: int | str) -> Any:
    device = next(model.parameters()).device
    budget = resolve_batch_tokens(batch_tokens, model)
    for batch in plan_batches([len(prompt) + len(ids) for prompt, ids in rows], budget):
        collated = collate_rows([rows[place] for place in batch]).to(device)
        sums = compute_token_logps(model, collated).sum_by_row(len(batch))
        yield from zip(batch, sums.tolist(), strict=True)


def read_kept(
    path: Path, keys: dict[tuple[str, int], str], *, overwrite: bool, progress: Progress
) -> dict[tuple[str, int], Answer]:
    """Returns the answers on file that are as they would be generated now.

    Raises:
        DpotoolError: some were made with other weights or settings.
    """
    rows, n_torn = read_sound_lines(path)
    if n_torn:
        progress.warn(f"{path}: {count(n_torn, 'half-written line')} left out")
    found: dict[tuple[str, int], Answer] = {}
    n_other = 0
    for row in rows:
        answer = read_row(row, path)
        name = (answer.question_id, answer.sample)
        if name in keys and answer.key == keys[name]:
            found[name] = answer
        elif name in keys:
            n_other += 1
    if n_other and not overwrite:
        raise DpotoolError(
            f"holds {count(n_other, 'answer')} made with other weights or settings",
            where=str(path),
            remedy="Pass --overwrite to answer anew, or --output with another folder",
        )
    return found
