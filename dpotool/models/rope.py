"""Rotary positions that depend on a sequence's length (longrope): each row by its own, whatever it is batched with.

Phi-3's long versions have two sets of factors, for sequences up to the length they were first trained on and for longer
ones. transformers takes one set for a whole batch, by its longest row and its padding. A value would then depend on its
company, and a score could not be kept for its pair. Here each row has what it has alone.

Dynamic scaling (NTK) changes beyond `max_position_embeddings` only, which `--max-length` never exceeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair

LONGROPE = "longrope"
_OWN_LENGTHS = "dpotool_row_lengths"


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

    What is padded counts as not there: zeros on the right, as `likelihood.batch` lays rows out. A row that ends in real
    tokens of id 0 counts as shorter by these, in any company. Other models are left as they are.
    """
    if not find_length_switches(model.config.get_text_config()):
        return
    decoder = model.get_decoder()
    for module in decoder.modules():
        kinds = getattr(module, "rope_type", None)
        if LONGROPE in (kinds.values() if isinstance(kinds, dict) else (kinds,)):
            setattr(module, _OWN_LENGTHS, None)
            module.forward = MethodType(_compute_by_row, module)
    decoder.register_forward_pre_hook(_note_lengths, with_kwargs=True)


def _note_lengths(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tells the rotary modules how long the rows are that come; None where only embeddings come."""
    input_ids = kwargs.get("input_ids", args[0] if args else None)
    lengths = None
    if input_ids is not None:
        places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        lengths = (places * (input_ids != 0)).amax(dim=1)
    for module in decoder.modules():
        if hasattr(module, _OWN_LENGTHS):
            setattr(module, _OWN_LENGTHS, lengths)


def _compute_by_row(rotary: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, ...]:
    """Computes cosines and sines (rows, seq, features) with both sets of factors, and takes each row's own."""
    kind, parameters, options = rotary.rope_type, rotary.config.rope_parameters, {}
    if layer_type is not None:
        kind, parameters, options = kind[layer_type], parameters[layer_type], {"layer_type": layer_type}
    lengths = getattr(rotary, _OWN_LENGTHS)
    forward = type(rotary).forward
    if kind != LONGROPE or lengths is None:
        return forward(rotary, x, position_ids, **options)
    switch = parameters["original_max_position_embeddings"]
    columns = torch.arange(position_ids.shape[1], device=position_ids.device)
    # a shared row has several sequences, and positions tell how far the longest goes
    reached = (position_ids * (columns < lengths[:, None])).amax(dim=1) + 1
    is_long = (reached > switch)[:, None, None]
    short = forward(rotary, x, position_ids.clamp(max=switch - 1), **options)
    if not bool(is_long.any()):
        return short
    long = forward(rotary, x, position_ids, **options)
    return tuple(torch.where(is_long, *both) for both in zip(long, short, strict=True))
