"""The built-in model: a Llama of about a million parameters, untrained, and its own byte-level tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpotool.data.demo import generate_demo_rows

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCAB_SIZE = 1024
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Renders a conversation as the built-in pairs are written, so that both give the same token ids."""


@dataclass(frozen=True, slots=True)
class SftSettings:
    """Hyperparameters of the demo's first stage."""

    learning_rate: float
    epochs: float
    batch_size: int


DEMO_SFT = SftSettings(learning_rate=4e-3, epochs=4.0, batch_size=16)
"""Enough to learn the grammar, in well under a minute on two cores."""


def build_demo_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the demonstrations: byte-level BPE, so that any text has tokens and none is unknown."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((row["prompt"] + row["chosen"] for row in generate_demo_rows("sft")), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_demo_config() -> LlamaConfig:
    """Returns the architecture: two wide layers, tied embeddings; a wide shallow model is the quickest on a CPU."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=176,
        intermediate_size=480,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def build_demo_model(seed: int) -> LlamaForCausalLM:
    """Returns the model with random weights; torch's global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(build_demo_config())
