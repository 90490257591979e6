"""Small tokenizers of every family that treats boundaries, BOS or EOS in its own way; trained here, offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "Summarize this post in one or two sentences.\n\nMy friend went to Rome last week.\n\nTL;DR: we went to Rome.",
    "What color is the sky? It is blue. It is green. The sky is blue because light is scattered, isn't it?",
    "Human: how are you today?\n\nAssistant: I am doing well, thank you! Why don't you tell me about your day? 3.14159",
    "You are a helpful assistant. user system assistant model think",
] * 4

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The generation prompt holds an empty thought that a finished conversation does not show, unless thinking is asked for.
THINKING = CHATML.replace(
    "'<|im_start|>assistant\n'",
    "'<|im_start|>assistant\n' + ('' if enable_thinking is defined and enable_thinking else '<think>\n\n</think>\n\n')",
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + ZEPHYR
)
OPEN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@cache
def _train_byte_level(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


@cache
def _train_sentencepiece() -> str:
    """As converted Llama-2 and Mistral tokenizers: a space mark before each word and the text, bytes as fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=special + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    return json.dumps(state)


def _wrap(tokenizer: Tokenizer, **kwargs: str) -> PreTrainedTokenizerBase:
    template = kwargs.pop("chat_template", None)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)
    wrapped.chat_template = template
    return wrapped


def _enclose(tokenizer: Tokenizer, template: str, *tokens: str) -> Tokenizer:
    ids = [(token, tokenizer.token_to_id(token)) for token in tokens]
    before = [tokenizer.post_processor] if tokenizer.post_processor is not None else []
    added = processors.TemplateProcessing(single=template, special_tokens=ids)
    tokenizer.post_processor = processors.Sequence([*before, added]) if before else added
    return tokenizer


def gpt2(chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Byte-level BPE; no BOS, pad = eos."""
    tokenizer = Tokenizer.from_str(_train_byte_level(("<|endoftext|>",)))
    end = "<|endoftext|>"
    return _wrap(tokenizer, bos_token=end, eos_token=end, pad_token=end, chat_template=chat_template)


def llama2(chat_template: str | None = MISTRAL) -> PreTrainedTokenizerBase:
    """SentencePiece-like; BOS before every text; the template closes with eos."""
    tokenizer = _enclose(Tokenizer.from_str(_train_sentencepiece()), "<s> $A", "<s>")
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=chat_template)


def zephyr(chat_template: str = ZEPHYR) -> PreTrainedTokenizerBase:
    """SentencePiece-like; the template closes with eos and a newline; pad = eos."""
    tokenizer = llama2(chat_template)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def qwen(chat_template: str = CHATML) -> PreTrainedTokenizerBase:
    """Byte-level BPE with ChatML; no BOS; eos closes a turn, another token pads."""
    tokenizer = Tokenizer.from_str(_train_byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>")))
    return _wrap(tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=chat_template)


def smollm2() -> PreTrainedTokenizerBase:
    """ChatML whose turn opener is also named BOS, pad = eos, as SmolLM2-Instruct's."""
    tokenizer = qwen()
    tokenizer.bos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>"
    return tokenizer


def llama3(eos_token: str = "<|eot_id|>") -> PreTrainedTokenizerBase:
    """Byte-level BPE; BOS before every text, and in the template."""
    special = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = _enclose(Tokenizer.from_str(_train_byte_level(special)), "<|begin_of_text|> $A", "<|begin_of_text|>")
    return _wrap(tokenizer, bos_token="<|begin_of_text|>", eos_token=eos_token, chat_template=LLAMA3)


def appending_eos() -> PreTrainedTokenizerBase:
    """SentencePiece-like with `add_eos_token`: every text is encoded as <s> text </s>."""
    tokenizer = _enclose(Tokenizer.from_str(_train_sentencepiece()), "<s> $A </s>", "<s>", "</s>")
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=MISTRAL)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "gpt2": lambda: gpt2(),
    "gpt2-zephyr": lambda: gpt2(ZEPHYR),
    "llama2": llama2,
    "zephyr": zephyr,
    "qwen": qwen,
    "qwen-thinking": lambda: qwen(THINKING),
    "smollm2": smollm2,
    "llama3": llama3,
    "llama3-base-eos": lambda: llama3("<|end_of_text|>"),
}
