"""Makes a model give one number for one row: no dropout, and positions that do not depend on the rest of the batch.

Dropout and jitter: with them, the policy would differ from the reference at step 0. Architectures store their rates as
modules, as numbers beside a functional call, or in the configuration; so whatever number goes by the name of drop or
jitter is set to zero, wherever it stands.

Positions: Phi-3's long versions have two sets of rotary factors (longrope), for sequences up to the length they were
first trained on and for longer ones. transformers takes one set for a whole batch, by its longest row and its padding.
A value would then depend on its company, and a score could not be kept for its pair. Here each row has the factors that
it would have alone. Dynamic scaling (NTK) changes beyond `max_position_embeddings` only, which `--max-length` never
exceeds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError

LONGROPE = "longrope"
_OWN_LENGTHS, _TOLD = "dpotool_row_lengths", "dpotool_told_row_lengths"


MAX_LENGTH = 2048
"""The paper's; used where neither the user nor the model's positions say less."""


def find_length_switches(config: Any) -> list[int]:
    """Lists the lengths (tokens) up to which a model takes one set of rotary factors, beyond which another."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    name = "original_max_position_embeddings"
    return [int(of_layer[name]) for of_layer in by_layer if of_layer.get("rope_type") == LONGROPE and name in of_layer]


def has_alike_prompts(config: Any, pairs: Sequence[TokenizedPair]) -> bool:
    """Tells whether each pair's two rows lie on the same side of every switch, so that their prompts' states agree."""
    switches = find_length_switches(config)
    rows = [
        [len(pair.prompt_ids) + len(ids) for ids in (pair.chosen_ids, pair.rejected_ids)] for pair in pairs if switches
    ]
    return not any(min(both) <= switch < max(both) for switch in switches for both in rows)


def let_rows_go_by_their_own_length(model: Any) -> None:
    """Makes a model of transformers with longrope take each row's factors by that row's own length.

    Padding on the right does not count where `tell_row_lengths` says how far the rows go; without being told, a row
    goes as far as its largest position, as in generation, which pads on the left. Other models are left as they are.
    """
    if not find_length_switches(model.config.get_text_config()):
        return
    decoder = model.get_decoder()
    setattr(decoder, _TOLD, None)
    for module in decoder.modules():
        kinds = getattr(module, "rope_type", None)
        if LONGROPE in (kinds.values() if isinstance(kinds, dict) else (kinds,)):
            setattr(module, _OWN_LENGTHS, None)
            module.forward = MethodType(_compute_by_row, module)
    decoder.register_forward_pre_hook(_note_lengths)


def goes_by_row_length(decoder: nn.Module) -> bool:
    """Whether a decoder must be given the lengths of its rows."""
    return hasattr(decoder, _TOLD)


def tell_row_lengths(decoder: nn.Module, lengths: Int[Tensor, " rows"]) -> None:
    """Says how many positions each row of the decoder's next call has before its padding."""
    setattr(decoder, _TOLD, lengths)


def _note_lengths(decoder: nn.Module, _args: tuple[Any, ...]) -> None:
    """Passes the row lengths on to the rotary modules, for this one call."""
    for module in decoder.modules():
        if hasattr(module, _OWN_LENGTHS):
            setattr(module, _OWN_LENGTHS, getattr(decoder, _TOLD))
    setattr(decoder, _TOLD, None)


def _compute_by_row(rotary: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, ...]:
    """Computes cosines and sines (rows, seq, features) with both sets of factors, and takes each row's own."""
    kind, parameters, options = rotary.rope_type, rotary.config.rope_parameters, {}
    if layer_type is not None:
        kind, parameters, options = kind[layer_type], parameters[layer_type], {"layer_type": layer_type}
    forward = type(rotary).forward
    if kind != LONGROPE:
        return forward(rotary, x, position_ids, **options)
    switch = parameters["original_max_position_embeddings"]
    lengths = getattr(rotary, _OWN_LENGTHS)
    reached = position_ids.amax(dim=1) + 1 if lengths is None else lengths
    is_long = (reached > switch)[:, None, None]
    short = forward(rotary, x, position_ids.clamp(max=switch - 1), **options)
    if not bool(is_long.any()):
        return short
    long = forward(rotary, x, position_ids, **options)
    return tuple(torch.where(is_long, *both) for both in zip(long, short, strict=True))


def resolve_max_length(max_length: int | None, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the longest sequence in tokens: as the user says, else 2048, but at most the model's positions."""
    return choose_max_length(max_length, find_positions(getattr(model, "config", None), tokenizer))


def find_positions(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns how many tokens a model has positions for, by its config or its tokenizer; None where neither says."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None and tokenizer.model_max_length < 10**9:  # transformers' way of saying "not known" is about 1e30
        limit = tokenizer.model_max_length
    return limit


def choose_max_length(max_length: int | None, limit: int | None) -> int:
    """Returns the user's number, else 2048, but at most `limit`; raises DpotoolError for a number above `limit`."""
    if max_length is not None and limit is not None and max_length > limit:
        raise DpotoolError(
            "longer than the model has positions for",
            where="--max-length",
            expected=f"at most {limit}",
            got=str(max_length),
        )
    return max_length if max_length is not None else min(MAX_LENGTH, limit or MAX_LENGTH)


_RATE = re.compile(r"drop|jitter")


def disable_dropout(model: nn.Module) -> None:
    """Sets every rate of dropout and jitter in modules and configurations to 0.

    Where a router reads its jitter in evaluation too (PhiMoE: as the distance within which experts compete), a zero
    would make another model of it. There the rate stays, and the router is kept in evaluation mode.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero(vars(module), re.compile("drop"))
    for config in _list_configs(getattr(model, "config", None)):
        _zero(vars(config), re.compile("drop"))
    noisy = [module for module in model.modules() if _list_rates(vars(module), re.compile("jitter"))]
    if noisy:
        _disable_jitter(model, noisy)


def _disable_jitter(model: nn.Module, noisy: list[nn.Module]) -> None:
    holders = [vars(module) for module in noisy] + [vars(config) for config in _list_configs(model.config)]
    before, rates = _compute_probe(model), [_list_rates(holder, _RATE) for holder in holders]
    for holder in holders:
        _zero(holder, _RATE)
    if not torch.equal(before, _compute_probe(model)):
        for holder, kept in zip(holders, rates, strict=True):
            holder.update(kept)
        for module in noisy:
            _keep_in_evaluation(module)


def _keep_in_evaluation(module: nn.Module) -> None:
    """Lets a module's training mode be off for good; its children change theirs as always."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        for child in self.children():
            child.train(mode)
        return self

    module.training = False
    module.train = MethodType(train, module)  # type: ignore[method-assign]


@torch.no_grad()
def _compute_probe(model: nn.Module) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(1, 17, device=next(model.parameters()).device)[None]
        logits: Tensor = model(input_ids=ids, use_cache=False)[0]
        return logits
    finally:
        model.train(was_training)


def _zero(holder: dict[str, Any], names: re.Pattern[str]) -> None:
    holder.update(dict.fromkeys(_list_rates(holder, names), 0.0))


def _list_rates(holder: dict[str, Any], names: re.Pattern[str]) -> dict[str, float]:
    """Returns the numbers above 0 whose name matches."""
    return {
        name: value for name, value in holder.items() if isinstance(value, float) and value > 0 and names.search(name)
    }


def _list_configs(config: object) -> Iterator[PreTrainedConfig]:
    """Yields a configuration and those inside it."""
    if isinstance(config, PreTrainedConfig):
        yield config
        for value in list(vars(config).values()):
            yield from _list_configs(value)
