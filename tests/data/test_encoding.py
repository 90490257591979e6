"""Boundary and EOS, worked by hand; equality with TRL is in test_trl_parity.py."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizer_families import FAMILIES, OPEN, STRICT, appending_eos, gpt2, llama2, llama3, qwen, smollm2, zephyr
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpotool.data.encoding import EncodedPair, PairEncoder, split_completions
from dpotool.data.pairs import PreferencePair, Text
from dpotool.errors import DpotoolError

USER = {"role": "user", "content": "What color is the sky?"}
TOOLS = "{% if tools %}{{ tools[0]['name'] }}{% endif %}" + OPEN


def _answer(content: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content}]


def encode(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, chosen: Text, rejected: Text, **options: Any
) -> EncodedPair:
    (encoded,) = PairEncoder(tokenizer).encode([PreferencePair(0, prompt, chosen, rejected, **options)])
    assert isinstance(encoded, EncodedPair), encoded
    return encoded


def test_split_completions_worked_by_hand() -> None:
    """Prompt 1 2 3; with chosen the 3 merges into 9, so the prompt ends behind 2 in both sequences."""
    assert split_completions([1, 2, 3], [1, 2, 9, 5], [1, 2, 3, 6]) == EncodedPair([1, 2], [9, 5], [3, 6], True)
    assert split_completions([1, 2], [1, 2, 5], [1, 2, 6]) == EncodedPair([1, 2], [5], [6], False)
    assert split_completions([], [5], [6]) == EncodedPair([], [5], [6], False)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_closed_by_eos_once_and_decodes_to_itself(family: str) -> None:
    """Also where pad = eos (gpt2, smollm2, zephyr), and where the text brings its EOS along."""
    tokenizer = FAMILIES[family]()
    eos, eos_id = str(tokenizer.eos_token), tokenizer.eos_token_id
    encoded = encode(tokenizer, "Is it?", " It is.", f" It is not.{eos}")
    for ids in (encoded.chosen_ids, encoded.rejected_ids):
        assert ids[-1] == eos_id
        assert ids.count(eos_id) == 1
    assert tokenizer.decode(encoded.chosen_ids[:-1]).strip() == "It is."


def test_text_that_ends_in_eos_and_white_space_is_closed_already() -> None:
    """A ChatML turn rendered by someone else: ids are those of the text alone."""
    tokenizer = qwen()
    encoded = encode(tokenizer, "<|im_start|>assistant\n", "Yes<|im_end|>\n", "No<|im_end|>")
    assert encoded.chosen_ids == tokenizer("Yes<|im_end|>\n")["input_ids"]
    assert encoded.chosen_ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("tokenizer", [appending_eos(), llama2()], ids=["add_eos_token", "plain"])
def test_an_eos_of_the_tokenizers_own_is_not_a_second_one(tokenizer: PreTrainedTokenizerBase) -> None:
    """... and the prompt, which the tokenizer closes too, is a prefix all the same."""
    encoded = encode(tokenizer, "Is it?", " It is.", " No.")
    assert encoded.chosen_ids.count(2) == 1
    assert 2 not in encoded.prompt_ids
    assert not encoded.is_merged
    assert encoded.prompt_ids[0] == 1


@pytest.mark.parametrize(
    ("tokenizer", "end"),
    [
        (llama2(), "</s>"),
        (zephyr(), "</s>\n"),
        (qwen(), "<|im_end|>\n"),
        (smollm2(), "<|im_end|>\n"),
        (llama3(), "<|eot_id|>"),
        (llama3("<|end_of_text|>"), "<|eot_id|>"),  # the turn is closed, though not by eos
        (gpt2(OPEN), "\n<|endoftext|>"),  # the template leaves the turn open
    ],
    ids=["llama2", "zephyr", "qwen", "smollm2", "llama3", "llama3-base-eos", "open"],
)
def test_a_turn_is_closed_by_the_template_or_by_eos(tokenizer: PreTrainedTokenizerBase, end: str) -> None:
    encoded = encode(tokenizer, [USER], _answer("It is blue."), _answer("No."))
    encoder = PairEncoder(tokenizer)
    for ids, content in ((encoded.chosen_ids, "It is blue."), (encoded.rejected_ids, "No.")):
        assert tokenizer.decode(ids).lstrip(" ").replace("</s> ", "</s>") == content + end
        body = tokenizer.decode(ids[: len(ids) - encoder.count_end(ids)])
        assert body.strip() == content, "what closes the answer is the control token and all behind it"


def test_a_merged_boundary_is_said() -> None:
    """'Is it? ' + 'It' has the token ' It', which the prompt alone has not."""
    tokenizer = gpt2()
    assert encode(tokenizer, "Is it? ", "It is.", "No").is_merged
    assert not encode(tokenizer, "Is it?", " It is.", " No").is_merged


def test_tools_of_a_row_reach_the_template() -> None:
    tokenizer = gpt2(TOOLS)
    encoded = encode(tokenizer, [USER], _answer("Yes"), _answer("No"), template_kwargs={"tools": [{"name": "look"}]})
    assert tokenizer.decode(encoded.prompt_ids).startswith("lookuser: What")


def test_outcomes_keep_their_order_among_text_and_messages() -> None:
    tokenizer = zephyr(STRICT)
    system = {"role": "system", "content": "Be kind."}
    rows = [
        PreferencePair(0, "Q", " yes", " no"),
        PreferencePair(1, [system, USER], _answer("yes"), _answer("no")),
        PreferencePair(2, [USER], _answer("yes"), _answer("no")),
        PreferencePair(3, "Q", " green", " blue"),
    ]
    outcomes = PairEncoder(tokenizer).encode(rows)
    assert outcomes[1] == "refused by the chat template: System role not supported"
    for index in (0, 2, 3):
        assert outcomes[index] == PairEncoder(tokenizer).encode([rows[index]])[0]
        assert isinstance(outcomes[index], EncodedPair)


def test_an_empty_prompt_needs_a_bos() -> None:
    pair = PreferencePair(0, "", "yes", "no")
    assert PairEncoder(gpt2()).encode([pair]) == ["no prompt token for the completion's first token to depend on"]
    assert encode(llama3(), "", "yes", "no").prompt_ids == [0]


def test_a_completion_of_eos_alone_tokenizes_to_nothing() -> None:
    pairs = [PreferencePair(0, "Q", "<|endoftext|>", " no"), PreferencePair(1, "Q", " yes", "<|endoftext|>")]
    assert PairEncoder(gpt2()).encode(pairs) == ["'chosen' tokenizes to nothing", "'rejected' tokenizes to nothing"]


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "keeps"),
    [
        (llama3(), "Q", True),
        (llama3(), [USER], True),
        (qwen(), [USER], False),
        (smollm2(), [USER], False),  # names <|im_start|> its BOS, but that opens every turn
        (gpt2(), "Q", False),
    ],
    ids=["llama3-text", "llama3-chat", "qwen", "smollm2", "gpt2"],
)
def test_what_counts_as_a_bos_to_keep(tokenizer: PreTrainedTokenizerBase, prompt: Text, keeps: bool) -> None:
    completion = (" yes", " no") if isinstance(prompt, str) else (_answer("yes"), _answer("no"))
    encoded = encode(tokenizer, prompt, *completion)
    assert PairEncoder(tokenizer).keeps_bos(encoded.prompt_ids) is keeps


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DpotoolError, match=r"the tokenizer has no EOS token, .*Set eos_token"):
        PairEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_conversations_need_a_chat_template() -> None:
    with pytest.raises(DpotoolError, match=r"the tokenizer has no chat template, and the data is conversational\. Use"):
        PairEncoder(gpt2()).encode([PreferencePair(0, [USER], _answer("yes"), _answer("no"))])
