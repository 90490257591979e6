"""Which model and tokenizer it is: what a fingerprint depends on, and whether models have the ids of the pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_families import build_family
from tiny_models import build_byte_tokenizer, save_tiny_model, write_pairs
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from dpotool.data.pair_sets import load_pair_set
from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.measures.run import score_models
from dpotool.models.identity import check_same_tokens, check_token_ids, count_rows, fingerprint_model
from dpotool.models.loading import load_model
from dpotool.settings.scoring import ScoreConfig
from dpotool.settings.shared import DataSettings
from dpotool.training.config import TrainConfig
from dpotool.training.run import train


def number_bytes_backwards() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocab = {token: number for number, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    backend = Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def with_prefix_space() -> PreTrainedTokenizerFast:
    tokenizer = build_byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def with_new_token() -> PreTrainedTokenizerFast:
    tokenizer = build_byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["Say"]})  # in every prompt, and without a row
    return tokenizer


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_pairs(tmp_path / "p.jsonl", 4))


def test_an_id_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    model = load_model(str(save_tiny_model(tmp_path / "m")))
    assert count_rows(model) == 259
    check_token_ids(model, [TokenizedPair(0, (1,), (258,), (3,))], with_new_token(), where="m")
    with pytest.raises(DpotoolError, match=r"m: token id 259 \(Say\) is beyond the 259 rows"):
        check_token_ids(model, [TokenizedPair(0, (1,), (4,), (259,))], with_new_token(), where="m")


@pytest.mark.parametrize("command", ["score", "train"])
def test_a_model_that_was_not_resized_is_refused(command: str, data: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "m", tokenizer=with_new_token())
    with pytest.raises(DpotoolError, match=r"token id 259 \(Say\)"):
        run(command, str(model), None, data, tmp_path)


@pytest.mark.parametrize("command", ["score", "train"])
@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [(number_bytes_backwards, r"token \d+ is"), (with_prefix_space, "other ones there")],
)
def test_a_reference_of_another_tokenizer_is_refused(
    command: str, tokenizer: object, said: str, data: str, tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "m")
    reference = save_tiny_model(tmp_path / "r", seed=1, tokenizer=tokenizer())  # type: ignore[operator]
    with pytest.raises(DpotoolError, match=f"the reference has another tokenizer.*{said}"):
        run(command, str(model), str(reference), data, tmp_path)


def test_a_reference_with_the_same_tokens_passes_and_so_does_one_without_a_tokenizer(data: str, tmp_path: Path) -> None:
    tokenizer = build_byte_tokenizer()
    pairs = load_pair_set(DataSettings(data=data), tokenizer, max_length=None, seed=0).pairs
    other = save_tiny_model(tmp_path / "r", tokenizer=build_byte_tokenizer(chat_template=None))
    check_same_tokens(tokenizer, str(other), pairs)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    check_same_tokens(tokenizer, str(other), pairs)
    number_bytes_backwards().save_pretrained(other)
    with pytest.raises(DpotoolError, match="the reference has another tokenizer"):
        check_same_tokens(tokenizer, str(other), pairs)


def run(command: str, model: str, reference: str | None, data: str, folder: Path) -> None:
    if command == "score":
        score_models([model], ScoreConfig(data=data, reference=reference, output=str(folder / "o")))
    else:
        train(TrainConfig(model=model, reference=reference, data=data, max_steps=1, output=str(folder / "o")))


def test_what_an_adapter_does_with_its_weights_counts_and_where_it_lies_does_not() -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft")
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build_family("llama"), settings)
    before = fingerprint_model(model)
    model.peft_config["default"].base_model_name_or_path = "/somewhere/else"
    model.peft_config["default"].inference_mode = True
    assert fingerprint_model(model) == before
    model.peft_config["default"].lora_alpha = 8
    assert fingerprint_model(model) != before
