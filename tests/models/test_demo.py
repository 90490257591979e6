"""The built-in model and tokenizer: small, seeded, saved as any other, and at a loss for no text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dpotool.data.demo import SPLITS, generate_demo_rows
from dpotool.models.demo import DEMO_SFT, build_demo_model, build_demo_tokenizer

TOKENIZER = build_demo_tokenizer()


def _round_trip(text: str) -> str:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)


def test_the_tokenizer_is_the_same_each_time() -> None:
    assert build_demo_tokenizer().backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_every_built_in_text_comes_back() -> None:
    texts = [
        row["prompt"] + row[name] for s in SPLITS for row in generate_demo_rows(s) for name in ("chosen", "rejected")
    ]
    assert all(_round_trip(text) == text for text in texts)


@given(st.text(max_size=60).filter(lambda text: "<|" not in text))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back(text: str) -> None:
    assert _round_trip(text) == text


def test_no_token_stands_for_the_unknown() -> None:
    assert TOKENIZER.unk_token is None
    assert None not in TOKENIZER("漢字 \x00 🦙 ñ")["input_ids"]


def test_a_text_starts_with_bos_once_and_eos_is_left_to_the_caller() -> None:
    ids = TOKENIZER("User: hello")["input_ids"]
    assert ids.count(TOKENIZER.bos_token_id) == 1
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.eos_token_id not in ids


def test_special_tokens_are_three_different_ones() -> None:
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (0, 1, 2)
    assert len(TOKENIZER) == 1024


def test_the_boundary_between_prompt_and_answer_never_merges() -> None:
    for row in generate_demo_rows("test"):
        prompt = TOKENIZER(row["prompt"])["input_ids"]
        assert TOKENIZER(row["prompt"] + row["chosen"])["input_ids"][: len(prompt)] == prompt


def test_the_chat_template_ends_a_prompt_where_the_built_in_prompts_end() -> None:
    messages = [{"role": "user", "content": "How do I cook rice?"}]
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("User: How do I cook rice?\nAssistant:")
    closed = TOKENIZER.apply_chat_template([*messages, {"role": "assistant", "content": "Boil it."}], tokenize=False)
    assert closed.startswith(rendered)
    assert closed.endswith("Assistant: Boil it.<|eos|>")


def test_a_conversation_has_the_ids_of_the_same_pair_as_plain_strings() -> None:
    row = generate_demo_rows("test")[0]
    request = row["prompt"].removeprefix("User: ").removesuffix("\nAssistant:")
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": row["chosen"].strip()}]
    conversation = TOKENIZER.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert conversation == [*TOKENIZER(row["prompt"] + row["chosen"])["input_ids"], TOKENIZER.eos_token_id]


def test_the_model_has_about_a_million_parameters_in_float32() -> None:
    model = build_demo_model(0)
    assert 0.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_seed_decides_the_weights_and_the_callers_random_state_stays() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = build_demo_model(1), build_demo_model(1), build_demo_model(2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_an_untrained_model_finds_every_token_about_as_likely() -> None:
    """Cross-entropy near log 1024 = 6.93 nats: the weights are on a sane scale."""
    ids = torch.tensor([TOKENIZER(generate_demo_rows("test")[0]["prompt"])["input_ids"]])
    assert build_demo_model(0)(input_ids=ids, labels=ids).loss.item() == pytest.approx(6.93, abs=0.3)


def test_it_is_saved_as_an_ordinary_folder(tmp_path: Path) -> None:
    model = build_demo_model(0)
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    text = generate_demo_rows("test")[0]["prompt"]
    assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert tokenizer.chat_template == TOKENIZER.chat_template
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_first_stage_has_settings_a_trainer_can_take() -> None:
    assert 0 < DEMO_SFT.learning_rate < 0.1
    assert DEMO_SFT.epochs * len(generate_demo_rows("sft")) / DEMO_SFT.batch_size < 1000
