"""A question, with the answers so far, as token ids for a model or as the body of a request to a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dpotool.data.encoding import PairEncoder
from dpotool.data.pairs import Message, PreferencePair
from dpotool.data.templates import render_chat
from dpotool.errors import DpotoolError
from dpotool.judging.endpoint import CHAT, PLAIN
from dpotool.judging.questions import Question


def build_messages(question: Question, answers: Sequence[str]) -> list[Message] | str:
    """Returns the conversation up to the next answer; the whole prompt as plain text where it is one.

    Args:
        answers: to the turns before.
    """
    if question.is_prompt:
        prompt = question.turns[0]
        return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
    messages: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]


def build_body(question: Question, answers: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Returns path and content of a request: a chat, or plain text to be continued."""
    asked = build_messages(question, answers)
    return (PLAIN, {"prompt": asked}) if isinstance(asked, str) else (CHAT, {"messages": asked})


class PromptEncoder:
    """Encodes prompts as training and scoring do (`data.encoding`)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._pairs = PairEncoder(tokenizer)

    def encode(self, question: Question, answers: Sequence[str]) -> tuple[int, ...]:
        """Returns the ids of everything before the next answer.

        Raises:
            DpotoolError: a conversation, and the tokenizer has no chat template or it refuses this one.
        """
        asked = build_messages(question, answers)
        if isinstance(asked, str):
            return self._encode_text(asked)
        if self._tokenizer.chat_template is None:
            raise DpotoolError(
                "the tokenizer has no chat template, and the questions are conversations",
                remedy="Put a chat_template.jinja beside the model, or give prompts as strings with --data",
            )
        try:
            text = render_chat(self._tokenizer, asked, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, AttributeError) as error:
            raise DpotoolError(
                f"refused by the chat template: {error}", where=f"question {question.question_id}"
            ) from None
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _encode_text(self, prompt: str) -> tuple[int, ...]:
        """The prompt part of a pair whose completion begins with a blank or a line end, as completions do."""
        probe = "x" if prompt[-1:].isspace() else " x"
        (encoded,) = self._pairs.encode([PreferencePair(0, prompt, probe, probe)])
        if isinstance(encoded, str):
            raise DpotoolError(encoded, where=f"prompt {prompt[:40]!r}")
        return tuple(encoded.prompt_ids)
