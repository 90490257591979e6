"""Sampling in which a prompt's answer does not depend on the batch it is in: each row has a stream of random numbers.

`generate` would draw all rows of a batch from one generator, so that an answer changes with its neighbours. Here each
step turns one uniform number of the row's own stream into a token, by the inverse of the cumulative distribution. Two
models that answer one question draw the same numbers, which makes their difference surer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class SeededSampling(LogitsProcessor):
    """Leaves one token of each row: the one its random number falls on. To be followed by an argmax."""

    def __init__(self, uniforms: Float[np.ndarray, "rows steps"], prompt_length: int) -> None:
        self._uniforms = torch.from_numpy(uniforms)
        self._prompt_length = prompt_length

    def __call__(
        self, input_ids: Int[Tensor, "rows seq"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        u = self._uniforms[:, input_ids.shape[1] - self._prompt_length].to(scores.device)
        cumulative = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        # Times the last sum, which rounding may leave beside 1; a token without probability adds nothing to the sum
        # before it and is passed over, also by a number of exactly 0.
        tokens = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)
        tokens = tokens.clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def draw_uniforms(seed: int, names: Sequence[tuple[str, int, int]], n_steps: int) -> Float[np.ndarray, "rows steps"]:
    """Returns the random numbers of each row, in [0, 1): by seed, question, sample and turn, and nothing else."""
    return np.stack([_stream(seed, name).random(n_steps) for name in names])


def _stream(seed: int, name: tuple[str, int, int]) -> np.random.Generator:
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def build_sampling(
    options: dict[str, Any], uniforms: Float[np.ndarray, "rows steps"], prompt_length: int
) -> LogitsProcessorList:
    """Returns transformers' own temperature, top-k, top-p and min-p, then the draw.

    Args:
        options: temperature, top_k, top_p and min_p; None for what is not used.
    """
    processors = LogitsProcessorList()
    if options["temperature"] not in (None, 1.0):
        processors.append(TemperatureLogitsWarper(float(options["temperature"])))
    if options["top_k"]:
        processors.append(TopKLogitsWarper(int(options["top_k"])))
    if options["top_p"] is not None and options["top_p"] < 1:
        processors.append(TopPLogitsWarper(float(options["top_p"])))
    if options["min_p"]:
        processors.append(MinPLogitsWarper(float(options["min_p"])))
    processors.append(SeededSampling(uniforms, prompt_length))
    return processors
