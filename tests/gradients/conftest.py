"""Tiny random models in which everything is float64, so that finite differences mean something."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dpotool.data.pairs import TokenizedPair

VOCAB = 64
BuildLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture
def build_llama() -> BuildLlama:
    """A function that builds a random Llama; transformers' RMSNorm, which rounds to float32, gives way to torch's."""

    def build(seed: int = 0, *, tied: bool = False, hidden: int = 16, layers: int = 2) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.3,
        )
        model = LlamaForCausalLM(config).double().eval()
        for name in [name for name, _ in model.named_modules()]:
            if name.endswith("norm"):
                model.set_submodule(name, nn.RMSNorm(hidden, eps=1e-6, dtype=torch.float64))
        return model

    return build


@pytest.fixture
def pairs() -> list[TokenizedPair]:
    """Six pairs of different lengths; the last has two identical completions."""
    draw = random.Random(5)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCAB) for _ in range(draw.randint(low, high)))

    drawn = [TokenizedPair(10 * index, ids(1, 6), ids(1, 7), ids(1, 7)) for index in range(5)]
    same = ids(3, 3)
    return [*drawn, TokenizedPair(50, ids(2, 2), same, same)]
