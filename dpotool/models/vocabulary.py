"""Checks that models fit the tokens: ids within their embeddings, and equal ids from both models' tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.models.loading import load_tokenizer
from dpotool.wording import count

_SAMPLE = 32
"""Pairs whose texts are encoded by both tokenizers."""


def check_token_ids(
    model: nn.Module, pairs: Sequence[TokenizedPair], tokenizer: PreTrainedTokenizerBase, *, where: str
) -> None:
    """Refuses pairs with a token that the model has no row for: a tokenizer got new tokens, the model did not.

    Raises:
        DpotoolError: the largest id of the pairs is beyond the input or the output embedding.
    """
    largest = max((max((*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids)) for pair in pairs), default=-1)
    n_rows = count_rows(model)
    if n_rows is not None and largest >= n_rows:
        raise DpotoolError(
            f"token id {largest} ({tokenizer.convert_ids_to_tokens(largest)}) is beyond the {count(n_rows, 'row')} of "
            "the model's embedding",
            where=where,
            remedy="Take the tokenizer the model was saved with, or save the model again after "
            "model.resize_token_embeddings(len(tokenizer))",
        )


def count_rows(model: nn.Module) -> int | None:
    """Returns how many tokens a model has an input and an output row for; None if that is not known."""
    inner: Any = model
    rows = []
    for name in ("get_input_embeddings", "get_output_embeddings"):
        try:
            weight = getattr(getattr(inner, name)(), "weight", None)
        except (AttributeError, NotImplementedError):
            continue
        if weight is not None and weight.dim() == 2:
            rows.append(len(weight))
    return min(rows, default=None)


def check_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    other: str,
    pairs: Sequence[TokenizedPair],
    *,
    trust_remote_code: bool = False,
) -> None:
    """Refuses a reference whose tokenizer numbers the pairs' tokens otherwise, or parts texts otherwise.

    A folder without a tokenizer is taken at its word.

    Args:
        other: folder or hub id of the reference.

    Raises:
        DpotoolError: a token of the pairs is another one there, or a text of theirs has other tokens there.
    """
    theirs = _find_tokenizer(other, trust_remote_code)
    if theirs is None:
        return
    used = sorted({id_ for pair in pairs for id_ in (*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids)})
    names, other_names = (_name_tokens(one, used) for one in (tokenizer, theirs))
    for id_, name, other_name in zip(used, names, other_names, strict=True):
        if name != other_name:
            raise _other_tokens(other, f"token {id_} is {name!r} for the model and {other_name!r} for the reference")
    for pair in pairs[:_SAMPLE]:
        text = tokenizer.decode([*pair.prompt_ids, *pair.chosen_ids])
        ids, other_ids = (one.encode(text, add_special_tokens=False) for one in (tokenizer, theirs))
        if ids != other_ids:
            raise _other_tokens(
                other, f"pair {pair.pair_id} has {count(len(ids), 'token')} for the model, and other ones there"
            )


def check_same_tokenizer(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Refuses two tokenizers that are not the same in vocabulary, merge rules, special tokens or chat template.

    Their current padding and truncation settings are not compared.

    Raises:
        DpotoolError: it names the first thing they differ in.
    """
    ours, theirs = (_describe_tokenizer(each) for each in (first, second))
    for what, value in ours.items():
        if value != theirs[what]:
            raise DpotoolError(
                f"have tokenizers of another {what} each, so they do not speak of the same texts",
                where=" and ".join(names),
                remedy="Name two models that were trained from one start with one tokenizer",
            )


def _describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    inside = {} if backend is None else json.loads(backend.to_str())
    rules = {name: value for name, value in inside.items() if name not in ("padding", "truncation")}
    return {
        "vocabulary": tokenizer.get_vocab(),
        "set of special tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "set of rules": rules,
        "chat template": tokenizer.chat_template,
    }


def _find_tokenizer(model: str, trust_remote_code: bool) -> PreTrainedTokenizerBase | None:
    try:
        return load_tokenizer(model, trust_remote_code=trust_remote_code)
    except DpotoolError:
        return None


def _name_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str | None]:
    size = len(tokenizer)
    return [str(tokenizer.convert_ids_to_tokens(id_)) if id_ < size else None for id_ in ids]


def _other_tokens(other: str, how: str) -> DpotoolError:
    return DpotoolError(
        f"the reference has another tokenizer, so its log-probabilities would be of other texts: {how}",
        where=other,
        remedy="Name the model that this one was trained from with --reference",
    )
