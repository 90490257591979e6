"""Generates answers: left padding, batches of like length by token budget, a key-value cache, random numbers per row.

The longest prompts come first, so that a batch which does not fit fails at once; one that runs out of memory is halved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dpotool.data.templates import render_chat
from dpotool.errors import DpotoolError
from dpotool.judging.answers import CUT_OFF, ENDED
from dpotool.judging.sampling import build_sampling, draw_uniforms
from dpotool.likelihood.budget import is_out_of_memory, measure_free_memory, plan_batches
from dpotool.likelihood.completions import get_causal_lm
from dpotool.settings.answers import GenerateConfig
from dpotool.settings.shared import AUTO

MOST_ROWS = {"cpu": 64}
MOST_ROWS_ELSEWHERE = 256
SHARE_OF_FREE_MEMORY = 0.5
_SAMPLERS = ("temperature", "top_k", "top_p", "min_p")
_UNSUPPORTED = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen, everything resolved."""

    max_new_tokens: int
    is_sampling: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    eos_ids: tuple[int, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Returns what an answer depends on: without sampling, neither seed nor temperature."""
        names = ["max_new_tokens", "is_sampling", "repetition_penalty"]
        names += [*_SAMPLERS, "seed"] if self.is_sampling else []
        return {**{name: getattr(self, name) for name in names}, "eos_ids": list(self.eos_ids)}


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to generate."""

    name: tuple[str, int, int]
    """Question, sample, turn: what the random numbers depend on."""
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """Tokens of one answer, the closing one included, and why they ended."""

    token_ids: tuple[int, ...]
    finish: str


def resolve_decoding(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: GenerateConfig,
    max_length: int,
) -> Decoding:
    """Returns the generation settings of the checkpoint, with the user's settings in their place.

    Args:
        config: without a temperature what the checkpoint says, which without a word is greedy; 0 is greedy.
        max_length: tokens of prompt and answer together; without a number of new tokens they get at most half of it.

    Raises:
        DpotoolError: a setting is out of range, or the checkpoint samples in a way that is not supported.
    """
    own, temperature = _own_settings(model), config.temperature
    wanted = config.max_new_tokens or own.max_new_tokens or min(512, max_length // 2)
    if not 0 < wanted < max_length:
        raise DpotoolError(
            "is out of range", where="--max-new-tokens", expected=f"1 to {max_length - 1}", got=str(wanted)
        )
    is_sampling = temperature > 0 if temperature is not None else bool(own.do_sample)
    strange = [name for name in _UNSUPPORTED if is_sampling and _is_set(own, name)]
    if strange or (own.num_beams or 1) > 1:
        raise DpotoolError(
            f"the checkpoint's generation settings use {', '.join(strange) or 'num_beams'}, which is not supported",
            remedy="Pass --temperature 0 for greedy answers" if strange else "Set num_beams to 1 in its settings",
        )
    return Decoding(
        max_new_tokens=wanted,
        is_sampling=is_sampling,
        temperature=temperature or own.temperature,
        top_k=config.top_k if config.top_k is not None else own.top_k,
        top_p=config.top_p if config.top_p is not None else own.top_p,
        min_p=own.min_p,
        repetition_penalty=own.repetition_penalty,
        eos_ids=find_closing_ids(model, tokenizer),
        seed=config.seed,
    )


def _own_settings(model: nn.Module) -> Any:
    causal_lm: Any = get_causal_lm(model)
    return causal_lm.generation_config


def _is_set(own: Any, name: str) -> bool:
    value = getattr(own, name, None)
    return value is not None and 0 < value < 1


def find_closing_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns the tokens that end an answer: the checkpoint's, the tokenizer's, and that of the template's turns."""
    own = _own_settings(model).eos_token_id
    ids = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        ids |= _ids_behind_turn(tokenizer)
    return tuple(sorted(id_ for id_ in ids if id_ is not None))


def _ids_behind_turn(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The first special token that the chat template puts behind an assistant's words."""
    words = "zq"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
    try:
        text = render_chat(tokenizer, messages)
    except DpotoolError:
        raise
    except Exception:  # whatever code in a template can raise: then it closes nothing that is known
        return set()
    behind = tokenizer(text.rpartition(words)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return {next((id_ for id_ in behind if id_ in special), tokenizer.eos_token_id)}


def generate_batches(
    model: nn.Module,
    jobs: Sequence[Job],
    decoding: Decoding,
    *,
    batch_tokens: int | str = AUTO,
    pad_id: int = 0,
    run: Callable[..., list[Generated]] | None = None,
) -> Iterator[list[tuple[int, Generated]]]:
    """Yields (place in `jobs`, tokens) batch by batch.

    Args:
        batch_tokens: prompt and new tokens of a batch after padding, or 'auto' by free memory.

    Raises:
        DpotoolError: memory is too small for a single answer.
    """
    run = run or generate_batch
    waiting = plan_generation(model, jobs, decoding.max_new_tokens, batch_tokens)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            found = run(model, [jobs[place] for place in batch], decoding, pad_id)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise DpotoolError(
                    "an answer does not fit into memory even by itself",
                    where=f"question {jobs[batch[0]].name[0]}",
                    remedy="Lower --max-new-tokens, or use --dtype bfloat16 or another --device",
                ) from None
            middle = (len(batch) + 1) // 2
            waiting += [batch[middle:], batch[:middle]]
            continue
        yield list(zip(batch, found, strict=True))


def plan_generation(
    model: nn.Module, jobs: Sequence[Job], max_new_tokens: int, batch_tokens: int | str
) -> list[list[int]]:
    """Returns batches of places in `jobs`: like length together, the longest first, within memory and row limits."""
    device = next(model.parameters()).device
    lengths = [len(job.prompt_ids) + max_new_tokens for job in jobs]
    if batch_tokens == AUTO:
        free = SHARE_OF_FREE_MEMORY * measure_free_memory(device)
        budget = max(1, int(free / estimate_cache_bytes(model)))
    else:
        budget = int(batch_tokens)
    most = MOST_ROWS.get(device.type, MOST_ROWS_ELSEWHERE)
    return [
        batch[start : start + most] for batch in plan_batches(lengths, budget) for start in range(0, len(batch), most)
    ]


def estimate_cache_bytes(model: nn.Module) -> int:
    """Returns about how much memory (bytes) one token of one row takes: keys and values of every layer, twice.

    Twice, as the cache is made longer by copying. Activations are as wide as a few layers and come on top.
    """
    config = get_causal_lm(model).config.get_text_config()
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    hidden = int(getattr(config, "hidden_size", None) or 1024)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    width = kv_heads * int(getattr(config, "head_dim", None) or hidden // heads)
    layers = int(getattr(config, "num_hidden_layers", None) or 1)
    size = next(model.parameters()).element_size()
    return 2 * 2 * layers * width * size + 16 * hidden * size


@torch.no_grad()
def generate_batch(model: nn.Module, jobs: Sequence[Job], decoding: Decoding, pad_id: int) -> list[Generated]:
    """Generates one batch, prompts padded on the left."""
    device = next(model.parameters()).device
    length = max(len(job.prompt_ids) for job in jobs)
    input_ids = torch.full((len(jobs), length), pad_id)
    mask = torch.zeros_like(input_ids)
    for row, job in enumerate(jobs):
        input_ids[row, length - len(job.prompt_ids) :] = torch.tensor(job.prompt_ids)
        mask[row, length - len(job.prompt_ids) :] = 1
    processors = None
    if decoding.is_sampling:
        uniforms = draw_uniforms(decoding.seed, [job.name for job in jobs], decoding.max_new_tokens)
        processors = build_sampling({name: getattr(decoding, name) for name in _SAMPLERS}, uniforms, length)
    causal_lm: Any = model
    sequences = causal_lm.generate(
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        generation_config=_plain_config(model, decoding, pad_id),
        logits_processor=processors,
    )
    return [cut_at_end(row, decoding.eos_ids) for row in sequences[:, length:].tolist()]


def _plain_config(model: nn.Module, decoding: Decoding, pad_id: int) -> Any:
    """The checkpoint's settings without their sampling, which is done by `sampling`."""
    config = copy.deepcopy(_own_settings(model))
    config.update(
        max_new_tokens=decoding.max_new_tokens,
        max_length=None,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(decoding.eos_ids),
        pad_token_id=pad_id,
        use_cache=True,
        **dict.fromkeys((*_SAMPLERS, *_UNSUPPORTED)),
    )
    return config


def cut_at_end(ids: list[int], eos_ids: Sequence[int]) -> Generated:
    """Returns the tokens up to and with the first closing one, and whether there is one."""
    end = next((place for place, id_ in enumerate(ids) if id_ in eos_ids), None)
    if end is None:
        return Generated(tuple(ids), CUT_OFF)
    return Generated(tuple(ids[: end + 1]), ENDED)
