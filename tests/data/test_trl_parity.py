"""Token ids and boundaries are those of TRL 1.16's own DPOTrainer, over row formats and tokenizer families.

TRL's `_prepare_dataset` is called unbound, on a stand-in that has the one attribute it reads: the trainer's code path
from rows to ids, without a model.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tokenizer_families import FAMILIES, OPEN, appending_eos, gpt2
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl import DPOTrainer
from trl.data_utils import maybe_extract_prompt

from dpotool.data.columns import convert_row, detect_layout
from dpotool.data.pair_sets import tokenize_preferences
from dpotool.data.pairs import DataSource, PreferenceData
from dpotool.data.sources import load_preferences

Ids = tuple[list[int], list[int], list[int]]

TEXT = [
    {"prompt": "What color is the sky?", "chosen": " It is blue.", "rejected": " It is green."},
    {"prompt": "What color is the sky? ", "chosen": "It is blue.", "rejected": "It is green."},  # merges the space
    {"prompt": "The sky is bl", "chosen": "ue because", "rejected": "ack"},  # merges inside a word
    {"prompt": "TL;DR:\n", "chosen": "\n\nwe went to Rome", "rejected": "Rome"},  # merges newlines
    {"prompt": "Où?  ", "chosen": "  Là-bas 🇫🇷 naïve 天空", "rejected": "\tnulle part…"},
]
USER = {"role": "user", "content": "What color is the sky?"}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
TURNS = [USER, {"role": "assistant", "content": "It is blue."}, {"role": "user", "content": "Why don't you know?"}]


def _answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


MESSAGES = [
    {"prompt": [USER], "chosen": _answer("It is blue."), "rejected": _answer("It is green.")},
    {"prompt": [SYSTEM, USER], "chosen": _answer(" blue "), "rejected": _answer("\n\ngreen\n")},
    {"prompt": TURNS, "chosen": _answer("naïve 天空 🇫🇷"), "rejected": _answer("3.14159")},
    {
        "prompt": [USER],
        "chosen": [*_answer("It is blue."), {"role": "user", "content": "Why?"}, *_answer("light is scattered")],
        "rejected": _answer("It is blue."),
    },
]
MESSAGES_IMPLICIT = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in MESSAGES[:3]]
MESSAGES_PROMPT_TEXT = [{"prompt": "What color is the sky?"} | row for row in MESSAGES_IMPLICIT]
TEXT_IMPLICIT = [  # TRL cuts these at a word boundary, or before the space in front of one
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"chosen": "Why?\nBecause it is.", "rejected": "Why?\nI am well."},
    {"chosen": "Answer:yes", "rejected": "Answer:no"},
    {"chosen": "It is.", "rejected": "It is!"},
]
TRANSCRIPTS = [
    {
        "chosen": "\n\nHuman: how are you?\n\nAssistant: I am well.\n\nHuman: why?\n\nAssistant: Because.",
        "rejected": "\n\nHuman: how are you?\n\nAssistant: I am well.\n\nHuman: why?\n\nAssistant: What?",
    },
]
FORMATS = {
    "text": TEXT,
    "text-implicit-prompt": TEXT_IMPLICIT,
    "hh-transcript": TRANSCRIPTS,
    "messages": MESSAGES,
    "messages-implicit-prompt": MESSAGES_IMPLICIT,
    "messages-prompt-text": MESSAGES_PROMPT_TEXT,
}


def tokenize_with_trl(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    config = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    dataset = Dataset.from_list([maybe_extract_prompt(row) | _options(row) for row in rows])
    prepared = DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, config, "train")
    return [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in prepared]


def _options(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("tools", "chat_template_kwargs") if key in row}


def tokenize_with_dpotool(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    layout = detect_layout(rows, "rows")
    pairs = [convert_row(index, row, layout) for index, row in enumerate(rows)]
    source = DataSource("rows", "rows", "all", layout.format, layout.columns, "")
    tokenized = tokenize_preferences(PreferenceData(pairs, source, len(rows)), tokenizer, max_length=None)
    assert not tokenized.excluded
    return [(list(pair.prompt_ids), list(pair.chosen_ids), list(pair.rejected_ids)) for pair in tokenized.pairs]


def _families_for(format_: str) -> list[str]:
    return [name for name in FAMILIES if name != "gpt2" or not format_.startswith("messages")]  # gpt2 has no template


@pytest.mark.parametrize(
    ("format_", "family"), [(format_, family) for format_ in FORMATS for family in _families_for(format_)]
)
def test_ids_and_boundary_equal_trl(format_: str, family: str) -> None:
    tokenizer, rows = FAMILIES[family](), FORMATS[format_]
    assert detect_layout(rows, "rows").format == format_
    assert tokenize_with_dpotool(rows, tokenizer) == tokenize_with_trl(rows, tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_text_equals_trl(family: str) -> None:
    """A hundred rows of words, white space and signs in random order: boundaries merge in every way there is."""
    draw = random.Random(family)
    pieces = [*" \n\té天▁", "  ", "\n\n", "sky", " blue", "is", "it's", ".", "...", "3", "14", "🇫🇷", "</s>"]
    tokenizer = FAMILIES[family]()

    def text(low: int) -> str:
        return "".join(draw.choice(pieces) for _ in range(draw.randint(low, 8))) + "x" * (low > 0)

    rows = [{"prompt": "Q" + text(0), "chosen": text(1), "rejected": text(1)} for _ in range(100)]
    ours = tokenize_with_dpotool(rows, tokenizer)
    assert ours == tokenize_with_trl(rows, tokenizer)
    merged = [ids for row, ids in zip(rows, ours, strict=True) if ids[0] != tokenizer(row["prompt"])["input_ids"]]
    assert merged


def test_template_options_of_a_row_reach_the_template() -> None:
    """`chat_template_kwargs` decides whether the generation prompt holds an empty thought, as in TRL."""
    tokenizer = FAMILIES["qwen-thinking"]()
    rows = [MESSAGES[0] | {"chat_template_kwargs": {"enable_thinking": value}} for value in (True, False)]
    ours = tokenize_with_dpotool(rows, tokenizer)
    assert ours == tokenize_with_trl(rows, tokenizer)
    assert tokenizer.decode(ours[0][0]).endswith("<|im_start|>assistant\n")


def test_a_template_that_leaves_the_turn_open_departs_from_trl_by_one_eos() -> None:
    tokenizer = gpt2(OPEN)
    ours, theirs = tokenize_with_dpotool(MESSAGES, tokenizer), tokenize_with_trl(MESSAGES, tokenizer)
    eos = [tokenizer.eos_token_id]
    assert ours == [(prompt, chosen + eos, rejected + eos) for prompt, chosen, rejected in theirs]


def test_a_tokenizer_that_appends_eos_departs_from_trl_by_one_eos() -> None:
    """TRL encodes 'text</s>' to ... </s> </s>; here the tokenizer's own is taken off again."""
    tokenizer = appending_eos()
    ours, theirs = tokenize_with_dpotool(TEXT, tokenizer), tokenize_with_trl(TEXT, tokenizer)
    assert all(chosen[-2:] == [tokenizer.eos_token_id] * 2 for _, chosen, _ in theirs)
    assert ours == [(prompt, chosen[:-1], rejected[:-1]) for prompt, chosen, rejected in theirs]


def test_an_implicit_prompt_departs_from_trl_only_inside_a_word() -> None:
    """'The zone' and 'The zany': TRL's prompt ends in 'z'. The whole sequences are the same all the same."""
    tokenizer = FAMILIES["llama3"]()
    rows = [{"chosen": "The zone", "rejected": "The zany"}]
    (ours,), (theirs,) = tokenize_with_dpotool(rows, tokenizer), tokenize_with_trl(rows, tokenizer)
    assert tokenizer.decode(theirs[0][1:]) == "The z"
    assert tokenizer.decode(ours[0][1:]) == "The"
    assert ours[0] + ours[1] == theirs[0] + theirs[1]
    assert ours[0] + ours[2] == theirs[0] + theirs[2]


NAMES = ("prompt", "chosen", "rejected")
REAL_MODEL = os.environ.get("DPOTOOL_REAL_MODEL", "")
REAL_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.real
@pytest.mark.skipif(not Path(REAL_MODEL or "absent").is_dir(), reason="DPOTOOL_REAL_MODEL names no model folder")
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="real preference data is not at ../shared/data")
class TestRealTokenizerAndData:
    """SmolLM2-135M-Instruct's tokenizer (ChatML, BOS = turn opener, pad = eos) over real rows."""

    def test_tldr_equals_trl(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(REAL_MODEL)
        rows = [
            {name: getattr(pair, name) for name in NAMES}
            for pair in load_preferences(str(REAL_DATA / "tldr_test.jsonl")).pairs
        ]
        assert len(rows) == 289
        assert tokenize_with_dpotool(rows, tokenizer) == tokenize_with_trl(rows, tokenizer)

    def test_tldr_as_messages_equals_trl(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(REAL_MODEL)
        pairs = load_preferences(str(REAL_DATA / "tldr_test.jsonl")).pairs
        rows = [
            {
                "prompt": [{"role": "user", "content": pair.prompt}],
                "chosen": _answer(str(pair.chosen)),
                "rejected": _answer(str(pair.rejected)),
            }
            for pair in pairs
        ]
        assert tokenize_with_dpotool(rows, tokenizer) == tokenize_with_trl(rows, tokenizer)

    def test_hh_equals_trl_but_for_replies_that_begin_alike(self) -> None:
        """TRL cuts at the first character that differs, which is behind 'Assistant:' unless the replies begin alike.

        Then the sequences are the same and only the boundary lies earlier, behind 'Assistant:' too.
        """
        tokenizer = AutoTokenizer.from_pretrained(REAL_MODEL)
        path = REAL_DATA / "hh_harmless_test.jsonl"
        kept = load_preferences(str(path), skip_invalid=True)
        rows = [{name: f"{pair.prompt}{getattr(pair, name)}" for name in ("chosen", "rejected")} for pair in kept.pairs]
        n_equal = 0
        ours, theirs = tokenize_with_dpotool(rows, tokenizer), tokenize_with_trl(rows, tokenizer)
        for own, other in zip(ours, theirs, strict=True):
            n_equal += own == other
            assert own[0] + own[1] == other[0] + other[1]
            assert own[0] + own[2] == other[0] + other[2]
            assert len(own[0]) <= len(other[0])
        assert n_equal == 533
