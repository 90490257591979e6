"""Greedy answers: `dpotool generate` against plain `model.generate` in batches of eight, the same tokens first.

    python benchmarks/generation.py --write                                    # the built-in ones, into performance.md
    python benchmarks/generation.py --case MODEL tldr_test.jsonl 32 --write    # MODEL a folder; several cases together

Plain `generate` takes the prompts in their order, pads each batch on the left and cuts at the closing token; dpotool
sorts them by length and fills batches by a budget of tokens. The two take turns in one process of one thread, and the
median of the rounds counts, in seconds of the processor, so that other work on the machine counts little. In float32 a
batch of another size can turn a choice between two tokens that are equal to rounding, so the share of equal answers is
shown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from harness import DOCS, Row, describe_machine, name_of
from page import format_table, replace_section
from torch import nn

from dpotool.data.sources import load_preferences
from dpotool.judging.generation import Decoding, Generated, Job, cut_at_end, generate_batches, resolve_decoding
from dpotool.judging.prompting import PromptEncoder
from dpotool.judging.questions import read_pairs
from dpotool.models.loading import load_model, load_tokenizer
from dpotool.models.precision import use_fast_float32_on_cpu
from dpotool.settings.answers import GenerateConfig

BATCH = 8
Answers = list[Generated]


def answer_plainly(model: nn.Module, jobs: Sequence[Job], decoding: Decoding) -> Answers:
    """What one would write: `generate` on eight prompts after the other."""
    answers = []
    for start in range(0, len(jobs), BATCH):
        rows = [job.prompt_ids for job in jobs[start : start + BATCH]]
        length = max(map(len, rows))
        ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        found = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=decoding.max_new_tokens, do_sample=False,
            eos_token_id=list(decoding.eos_ids), pad_token_id=0,
        )  # fmt: skip
        answers += [cut_at_end(row, decoding.eos_ids) for row in found[:, length:].tolist()]
    return answers


def answer(model: nn.Module, jobs: Sequence[Job], decoding: Decoding) -> Answers:
    """What `dpotool generate` does."""
    found = dict(each for batch in generate_batches(model, jobs, decoding) for each in batch)
    return [found[place] for place in range(len(jobs))]


METHODS: dict[str, Callable[[nn.Module, Sequence[Job], Decoding], Answers]] = {
    "dpotool": answer,
    "plain `generate`, batches of 8": answer_plainly,
}


def measure(model_name: str, data: str, n_prompts: str, args: argparse.Namespace) -> list[Row]:
    """Returns a row per method."""
    model, tokenizer = load_model(model_name, dtype="float32"), load_tokenizer(model_name)
    encoder = PromptEncoder(tokenizer)
    questions = read_pairs(load_preferences(data, limit=int(n_prompts)))
    jobs = [Job((question.question_id, 0, 0), encoder.encode(question, ())) for question in questions]
    decoding = resolve_decoding(
        model, tokenizer, GenerateConfig(max_new_tokens=args.max_new_tokens, temperature=0), 2048
    )
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    answers: dict[str, Answers] = {}
    for method in METHODS.values():
        method(model, jobs[:BATCH], decoding)
    for _ in range(args.rounds):
        for name, method in METHODS.items():
            start = time.process_time()
            answers[name] = method(model, jobs, decoding)
            seconds[name].append(time.process_time() - start)
    about: Row = {"model": name_of(model_name), "data": name_of(data).removesuffix(".jsonl")}
    ours, taken = answers["dpotool"], {name: statistics.median(each) for name, each in seconds.items()}
    n_tokens, rows = sum(len(each.token_ids) for each in ours), list[Row]()
    for name in METHODS:
        n_equal = sum(a == b for a, b in zip(answers[name], ours, strict=True))
        row = {**about, "method": name, "prompts x rounds": f"{len(jobs)} x {args.rounds}"}
        row |= {"answers/s": len(jobs) / taken[name], "new tokens/s": n_tokens / taken[name]}
        row["dpotool is faster by"] = taken[name] / taken["dpotool"]
        rows.append({**row, "equal answers": f"{n_equal} of {len(jobs)}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, action="append", metavar=("MODEL", "DATA", "PROMPTS"))
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCS.name}")
    args = parser.parse_args()
    cases = args.case or [("builtin:demo", "builtin:demo", "200")]
    use_fast_float32_on_cpu()
    torch.set_num_threads(1)
    table = format_table([row for case in cases for row in measure(*case, args)])
    command = "Command: `python benchmarks/generation.py`."
    text = f"{describe_machine()}; float32, one thread, seconds of the processor. {command}\n\n{table}"
    print(text)
    if args.write:
        replace_section(DOCS, "generation", text)


if __name__ == "__main__":
    main()
