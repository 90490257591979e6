"""A reward model as a judge: `AutoModelForSequenceClassification` with one output, on prompt and answer as a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dpotool.data.templates import render_chat
from dpotool.errors import DpotoolError
from dpotool.hub import check_name
from dpotool.judging.answers import Answer
from dpotool.judging.prompting import build_messages
from dpotool.judging.questions import Question
from dpotool.likelihood.budget import plan_batches
from dpotool.models.loading import quiet_transformers, resolve_device, resolve_dtype
from dpotool.progress import Progress
from dpotool.settings.answers import JudgeConfig

if TYPE_CHECKING:
    from dpotool.judging.judges import Score


def open_reward_model(config: JudgeConfig, progress: Progress) -> Score:
    """Loads a reward model and returns what scores answers with it.

    Raises:
        DpotoolError: it cannot be loaded, or has not exactly one output.
    """
    name = str(config.judge_model)
    check_name(name)
    progress.note(f"loading {name}")
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=config.trust_remote_code)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                name,
                dtype=resolve_dtype(config.dtype),
                use_safetensors=True,
                trust_remote_code=config.trust_remote_code,
            )
    except (OSError, ValueError, KeyError) as error:
        detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DpotoolError(f"the reward model cannot be loaded ({detail})", where=name) from None
    if model.config.num_labels != 1:
        raise DpotoolError(
            "is no reward model", where=name, expected="one output", got=f"{model.config.num_labels} classes"
        )
    device = resolve_device(config.device)
    model = model.to(device).eval()
    known = (model.config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad_id = model.config.pad_token_id = next(id_ for id_ in known if id_ is not None)

    def score(items: Sequence[tuple[Question, Answer]]) -> list[float | None]:
        rows = [_encode(tokenizer, question, answer) for question, answer in items]
        scores: list[float | None] = [None] * len(rows)
        with progress.track(f"scoring with {name}", len(rows)) as advance:
            for batch in plan_batches([len(row) for row in rows], config.batch_tokens):
                for place, value in zip(batch, _score_batch(model, [rows[i] for i in batch], pad_id), strict=True):
                    scores[place] = value
                advance(len(batch))
        return scores

    return score


def _encode(tokenizer: Any, question: Question, answer: Answer) -> list[int]:
    """The conversation with its last answer; by the chat template, or as plain text where there is none."""
    asked = build_messages(question, answer.turns[:-1])
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    messages.append({"role": "assistant", "content": answer.text})
    if tokenizer.chat_template is not None:
        text = render_chat(tokenizer, messages)
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    text = "\n\n".join(message["content"] for message in messages)
    return list(tokenizer(text, verbose=False)["input_ids"])


@torch.no_grad()
def _score_batch(model: Any, rows: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    """Scores, padded on the right: the model looks at the last token that is no padding."""
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(input_ids)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    device = next(model.parameters()).device
    logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits
    return [float(value) for value in logits[:, 0].float().cpu()]
