"""What is scored and trained on: real pairs for a real model, and random words for a random one.

A workload is a model folder and a JSONL file on disk, so that every method, dpotool's commands included, starts from
the same files and reaches the same token ids.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import build_random_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpotool.data.pair_sets import tokenize_preferences
from dpotool.data.pairs import TokenizedPair
from dpotool.data.sources import load_preferences
from dpotool.models.loading import load_tokenizer

MAX_LENGTH = 1024
"""TRL's default; longer pairs are not drawn, so that nobody truncates."""
FILES = {"TL;DR": "tldr_test.jsonl", "HH": "hh_harmless_test.jsonl"}
RANDOM_WORDS = "random words"
SPECIAL = ("<pad>", "<eos>", "<unk>")


@dataclass(frozen=True, slots=True)
class Workload:
    """Files to start from."""

    model: str
    """Folder of a checkpoint with its tokenizer."""
    data: str
    """JSONL file of prompt, chosen, rejected."""


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """Returns a tokenizer that has a token for each of the words w3, w4, ..."""
    vocab = {word: place for place, word in enumerate(SPECIAL)}
    vocab |= {f"w{place}": place for place in range(len(SPECIAL), vocab_size)}
    backend = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def write_random_model(folder: Path) -> str:
    """Saves the random model with a tokenizer that has a token for each of the words w3, w4, ..."""
    if not (folder / "config.json").exists():
        model = build_random_model()
        tokenizer = build_tokenizer(model.config.vocab_size)
        model.config.pad_token_id, model.config.eos_token_id = 0, 1
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def write_random_pairs(path: Path, n_pairs: int, vocab: int = 8192) -> str:
    """Writes pairs of random words: prompts of 128 to 512 words, completions of 16 to 64, log-uniform."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        n_words = round(math.exp(draw.uniform(math.log(low), math.log(high))))
        return "".join(f" w{draw.randrange(len(SPECIAL), vocab)}" for _ in range(n_words))

    rows = [{"prompt": text(128, 512), "chosen": text(16, 64), "rejected": text(16, 64)} for _ in range(n_pairs)]
    return _write_rows(path, rows)


def write_real_pairs(path: Path, source: Path, model: str, n_pairs: int) -> str:
    """Writes a random sample of the pairs that fit into MAX_LENGTH tokens."""
    preferences = load_preferences(str(source), skip_invalid=True)
    tokenized = tokenize_preferences(preferences, load_tokenizer(model), max_length=MAX_LENGTH, truncation="exclude")
    fitting = {pair.pair_id for pair in tokenized.pairs}
    kept = [pair for pair in preferences.pairs if pair.pair_id in fitting]
    if len(kept) < n_pairs:
        raise SystemExit(f"{source}: {len(kept)} pairs fit, {n_pairs} are asked for")
    sample = random.Random(0).sample(kept, n_pairs)
    return _write_rows(path, [{name: getattr(p, name) for name in ("prompt", "chosen", "rejected")} for p in sample])


def _write_rows(path: Path, rows: Sequence[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load_pairs(workload: Workload) -> tuple[PreTrainedTokenizerBase, list[TokenizedPair]]:
    """Returns the token ids that every method is given."""
    tokenizer = load_tokenizer(workload.model)
    pairs = tokenize_preferences(load_preferences(workload.data), tokenizer, max_length=None).pairs
    return tokenizer, pairs


def load_sample(path: str, tokenizer: PreTrainedTokenizerBase, n_pairs: int) -> list[TokenizedPair]:
    """Returns the first pairs of a file, cut to MAX_LENGTH tokens."""
    preferences = load_preferences(path, limit=2 * n_pairs, skip_invalid=True)
    return tokenize_preferences(preferences, tokenizer, max_length=MAX_LENGTH, truncation="trim-prompt").pairs[:n_pairs]


def count_operations(model: nn.Module, pairs: Sequence[TokenizedPair]) -> float:
    """Counts the multiplications and additions that scoring the pairs takes if each prompt token is computed once.

    Linear layers for the prompt and for all but the last token of each completion, whose state predicts nothing;
    attention of each token to itself and those before it; the output layer for completion tokens. Softmax, norms and
    activations are left out.
    """
    config, head = model.config, model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    linear = sum(layer.in_features * layer.out_features for layer in layers)  # weights in 4 bits are packed
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * head_width  # keys and values
    total = 0.0
    for pair in pairs:
        prompt, completions = len(pair.prompt_ids), (len(pair.chosen_ids), len(pair.rejected_ids))
        inner = [n - 1 for n in completions]
        attended = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in inner)
        total += 2 * (linear * (prompt + sum(inner)) + head.weight.numel() * sum(completions) + attention * attended)
    return total
