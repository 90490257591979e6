"""How long a sequence a model can take."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from dpotool.errors import DpotoolError

MAX_LENGTH = 2048
"""The paper's; used where neither the user nor the model's positions say less."""


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
