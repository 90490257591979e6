"""A tiny random Llama with a byte-level tokenizer, saved as an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = tuple("red blue green small large quick slow warm cold old new soft hard round flat bright".split())  # noqa: SIM905


def build_byte_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with one token a byte: 256 bytes, <pad>, <bos>, <eos>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=256
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tiny_model(folder: Path, *, seed: int = 0, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Writes a model of some ten thousand parameters and its tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (tokenizer or build_byte_tokenizer()).save_pretrained(folder)
    return folder


def write_pairs(path: Path, n: int, *, seed: int = 0, scores: bool = True) -> Path:
    """Writes n random pairs in the standard format; chosen and rejected differ in one word."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(n):
            words = [draw.choice(WORDS) for _ in range(draw.randint(2, 5))]
            other = [draw.choice(WORDS), *words[1:]]
            row: dict[str, object] = {
                "prompt": f"Say {draw.choice(WORDS)}:",
                "chosen": " " + " ".join(words),
                "rejected": " " + " ".join(other),
            }
            if scores:
                row |= {"score_chosen": draw.uniform(6, 9), "score_rejected": draw.uniform(1, 5)}
            file.write(json.dumps(row) + "\n")
    return path
