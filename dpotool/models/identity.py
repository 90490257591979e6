"""Which model and which tokenizer this is: content hashes, and checks that models and the tokens of the pairs fit.

Equal fingerprints mean the same weights and the same tokens. The checks: ids lie within the embeddings, and the
tokenizers of both models give equal ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.models.loading import load_tokenizer
from dpotool.wording import count


def fingerprint_model(model: nn.Module) -> str:
    """Returns 16 hex digits that change with any weight, its name, type or shape, and with the architecture's settings.

    A weight that is tied to another is hashed under each of its names. Settings that do not change what the model
    computes (its path, the library's version) are left out.
    """
    digest = hashlib.sha256(_settings_that_count(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data: Any = _fetch(model, name, tensor).contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    return digest.hexdigest()[:16]


def _fetch(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Returns a weight on the CPU, also one that lies in memory or on disk until its layer runs (`--device-map`)."""
    if not tensor.is_meta:
        return tensor.detach().cpu()
    owner, _, leaf = name.rpartition(".")
    with align_module_device(model.get_submodule(owner), "cpu"):
        fetched: Tensor = getattr(model.get_submodule(owner), leaf)
        return fetched.detach().clone()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns 16 hex digits that change with the vocabulary, the merge rules, special tokens and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [
        backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        json.dumps(tokenizer.chat_template, sort_keys=True, default=str),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _settings_that_count(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"):
        settings.pop(name, None)
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, dict):
        settings["adapters"] = {name: _scale_of(adapter.to_dict()) for name, adapter in adapters.items()}
    return json.dumps(settings, sort_keys=True, default=str)


def _scale_of(adapter: dict[str, Any]) -> dict[str, Any]:
    """What an adapter's settings do to the effect of its weights."""
    names = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    return {name: adapter[name] for name in names if name in adapter}


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
