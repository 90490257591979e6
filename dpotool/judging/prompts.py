"""Prompts that judges are given: the paper's, MT-Bench's kind, FastChat's file, or a Jinja file.

A template sees question, reference, answer_a and answer_b (of the last turn), and the lists questions, references,
answers_a and answers_b of all turns; single grading has answer and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError

from dpotool.data.pairs import Message
from dpotool.errors import DpotoolError, suggest_nearest
from dpotool.judging.lines import Row, read_lines, read_text
from dpotool.judging.verdicts import RULES

PAIRWISE, SINGLE = "pairwise", "single"
_JINJA = Environment(undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False)


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A way of asking a judge."""

    name: str
    kind: str
    """PAIRWISE or SINGLE."""
    rule: str
    """How replies are read: a name in `verdicts.RULES`."""
    template: str
    """Jinja."""
    needs_reference: bool
    source: str
    system: str | None = None

    def render(self, **values: Any) -> list[Message]:
        """Returns the messages to send.

        Raises:
            DpotoolError: the template wants what there is not, or is none.
        """
        try:
            text = _JINJA.from_string(self.template).render(**values)
            system = _JINJA.from_string(self.system).render(**values) if self.system else None
        except TemplateError as error:
            raise DpotoolError(f"the prompt cannot be filled in ({error})", where=self.name) from None
        asked: list[Message] = [{"role": "system", "content": system}] if system else []
        return [*asked, {"role": "user", "content": text.strip()}]


PAPER = JudgePrompt(
    "paper",
    PAIRWISE,
    "first-word",
    """\
You are tasked with comparing the responses of two assistants, Assistant A and Assistant B, to a user's question. \
Additionally, you will be provided with a reference answer to evaluate the quality of the responses from both \
assistants.

First, output only 'A', 'B' or 'Tie' to indicate your judgment on which response is better. Then, provide a \
one-sentence explanation for your choice. The principles for your judgment should be based on the following criteria:

1. The most important criterion is to select the response whose meaning is essentially closer to the reference answer.
2. Do not judge the quality of the two responses based on their length.
3. Evaluate the responses based on their helpfulness, relevance, accuracy, depth, and conciseness.

User's Question: {{ question }}

Reference Answer: {{ reference }}

- Assistant A's Response: {{ answer_a }}
- Assistant B's Response: {{ answer_b }}
""",
    needs_reference=True,
    source="arXiv:2502.07599, appendix A; the printed prompt asks for A or B, here also for Tie",
)

_PAIR_SYSTEM = """\
Compare the answers of two assistants to {{ 'a conversation' if questions|length > 1 else 'a question' }} of a user, \
as an impartial judge. Look at whether they are correct, helpful, relevant, detailed and do what was asked\
{{ ', above all in the last turn' if questions|length > 1 }}. Neither the order of the answers nor their length \
counts. First explain your comparison in a few sentences. Then give your verdict in exactly this form: [[A]] if \
assistant A is better, [[B]] if assistant B is better, [[C]] for a tie."""

_TURNS = """\
{%% for question in questions %%}
[User, turn {{ loop.index }}]
{{ question }}
{%% if references %%}
[Reference answer, turn {{ loop.index }}]
{{ references[loop.index0] }}
{%% endif %%}
%s
{%% endfor %%}
"""

MT_BENCH_PAIR = JudgePrompt(
    "mt-bench-pair",
    PAIRWISE,
    "brackets",
    _TURNS
    % """\
[Assistant A, turn {{ loop.index }}]
{{ answers_a[loop.index0] }}

[Assistant B, turn {{ loop.index }}]
{{ answers_b[loop.index0] }}""",
    needs_reference=False,
    source="after MT-Bench's pairwise comparison (arXiv:2306.05685), in other words",
    system=_PAIR_SYSTEM,
)

MT_BENCH_SINGLE = JudgePrompt(
    "mt-bench-single",
    SINGLE,
    "rating",
    _TURNS % "[Assistant, turn {{ loop.index }}]\n{{ answers[loop.index0] }}",
    needs_reference=False,
    source="after MT-Bench's single grading (arXiv:2306.05685), in other words",
    system="""\
Grade the last answer of an assistant{{ ' in a conversation' if questions|length > 1 }} as an impartial judge. Look at \
whether it is correct, helpful, relevant, detailed and does what was asked. First explain your grade in a few \
sentences. Then give it on a scale from 1 to 10 in exactly this form: [[5]].""",
)

PROMPTS = {prompt.name: prompt for prompt in (PAPER, MT_BENCH_PAIR, MT_BENCH_SINGLE)}
"""Built-in prompts; `--prompt mt-bench` takes the one of the two that fits the kind of judging."""


@dataclass(frozen=True, slots=True)
class PromptBook:
    """Which prompt a question gets: FastChat has others for questions with references, and for two turns."""

    name: str
    plain: JudgePrompt
    with_reference: JudgePrompt | None = None
    turns: tuple[JudgePrompt, JudgePrompt] | None = None
    """For the second turn, without and with reference."""

    def choose(self, n_turns: int, has_reference: bool) -> JudgePrompt:
        if n_turns > 1 and self.turns is not None:
            return self.turns[has_reference]
        return self.with_reference if has_reference and self.with_reference is not None else self.plain


def open_prompts(name: str | None, kind: str, rule: str) -> PromptBook:
    """Returns the prompt that the user names: built in, FastChat's file, or a Jinja file.

    Args:
        kind: PAIRWISE or SINGLE.
        rule: how replies to a Jinja file are read.

    Raises:
        DpotoolError: there is none of that name, or it is of the other kind.
    """
    name = name or ("paper" if kind == PAIRWISE else "mt-bench")
    if name == "mt-bench":
        name = "mt-bench-pair" if kind == PAIRWISE else "mt-bench-single"
    if name in PROMPTS:
        prompt = PROMPTS[name]
        if prompt.kind != kind:
            raise DpotoolError(f"is for {prompt.kind} judging", where=f"--prompt {name}", expected=f"one for {kind}")
        return PromptBook(name, prompt)
    path = Path(name)
    if not path.is_file():
        raise DpotoolError("no such prompt", where="--prompt", remedy=suggest_nearest(name, PROMPTS) + ", or a file")
    if path.suffix == ".jsonl":
        return read_fastchat_prompts(path, kind)
    if rule not in RULES:
        raise DpotoolError("unknown rule", where="--verdict-rule", remedy=suggest_nearest(rule, RULES))
    if (rule == "rating") != (kind == SINGLE):
        raise DpotoolError(f"does not fit {kind} judging", where=f"--verdict-rule {rule}")
    template = read_text(path)
    return PromptBook(path.stem, JudgePrompt(path.stem, kind, rule, template, "reference" in template, "a file"))


def read_fastchat_prompts(path: Path, kind: str) -> PromptBook:
    """Reads FastChat's judge_prompts.jsonl unchanged, so that grades can be compared with published ones.

    Raises:
        DpotoolError: one of the four prompts of that kind is not there.
    """
    rows: dict[str, Row] = {str(row.get("name")): row for row in read_lines(path)}
    stems = ("pair-v2", "pair-math-v1") if kind == PAIRWISE else ("single-v1", "single-math-v1")
    names = [f"{stem}{turns}" for turns in ("", "-multi-turn") for stem in stems]
    missing = [name for name in names if name not in rows]
    if missing:
        raise DpotoolError("lacks prompts of FastChat", where=str(path), expected=", ".join(missing))
    plain, math, plain_turns, math_turns = (_from_fastchat(rows[name], kind) for name in names)
    return PromptBook(f"fastchat-{kind}", plain, math, (plain_turns, math_turns))


_FIELDS = {
    "question": "questions[0]",
    "answer": "answers[0]",
    "answer_a": "answers_a[0]",
    "answer_b": "answers_b[0]",
    **{f"question_{n}": f"questions[{n - 1}]" for n in (1, 2)},
    **{f"ref_answer_{n}": f"references[{n - 1}]" for n in (1, 2)},
    **{f"answer_{n}": f"answers[{n - 1}]" for n in (1, 2)},
    **{f"answer_{side}_{n}": f"answers_{side}[{n - 1}]" for side in "ab" for n in (1, 2)},
}


def _from_fastchat(row: Row, kind: str) -> JudgePrompt:
    """FastChat fills in {question} and the like with str.format; here the same as Jinja."""
    for name in ("name", "prompt_template", "system_prompt"):
        if not isinstance(row.get(name), str):
            where = str(row.get("name"))[:40]
            raise DpotoolError("is no prompt of FastChat", where=where, expected=f"a text as {name}")
    template = "{% raw %}" + row["prompt_template"] + "{% endraw %}"
    for name, expression in _FIELDS.items():
        template = template.replace("{" + name + "}", "{% endraw %}{{ " + expression + " }}{% raw %}")
    rule = "brackets" if kind == PAIRWISE else "rating"
    return JudgePrompt(row["name"], kind, rule, template, "ref_answer" in template, "FastChat", row["system_prompt"])


def fill_pair(
    prompt: JudgePrompt, questions: Sequence[str], references: Sequence[str], a: Sequence[str], b: Sequence[str]
) -> list[Message]:
    """Returns the messages that show two answers."""
    return prompt.render(
        question=questions[-1], questions=list(questions), reference=references[-1] if references else "",
        references=list(references), answer_a=a[-1], answer_b=b[-1], answers_a=list(a), answers_b=list(b),
    )  # fmt: skip


def fill_single(
    prompt: JudgePrompt, questions: Sequence[str], references: Sequence[str], answers: Sequence[str]
) -> list[Message]:
    """Returns the messages that show one answer."""
    return prompt.render(
        question=questions[-1], questions=list(questions), reference=references[-1] if references else "",
        references=list(references), answer=answers[-1], answers=list(answers),
    )  # fmt: skip
