"""The built-in model: small, seeded, saved as any other, at a loss for no text, and there whole or not at all."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from forks import Fork
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dpotool.cache.clearing import clear_unfinished
from dpotool.data.demo import SPLITS, generate_demo_rows
from dpotool.errors import DpotoolError
from dpotool.models.builtin import is_builtin, locate_model, standing_in
from dpotool.models.loading import load_tokenizer
from dpotool.models.subject import describe_subject
from dpotool.progress import SILENT
from dpotool.settings.scoring import ScoreConfig
from dpotool.training import demo
from dpotool.training.demo import DEMO_SFT, build_demo_model, build_demo_tokenizer


def start_making(cache: Path, output: Path) -> Fork:
    """Starts a command that makes the built-in model, and returns when that is being trained."""
    words = ["-m", "dpotool", "score", "builtin:demo", "--limit", "2", "--output", str(cache / "out")]
    process = Fork([sys.executable, *words], output, os.environ | {"DPOTOOL_CACHE": str(cache)})
    while not list(cache.glob("tmp-demo-*/trained/metrics.jsonl")):
        assert process.poll() is None, process.read_output()
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="asks a process to stop by POSIX signals")
@pytest.mark.parametrize(("end", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -9)])  # SIGINT goes as SIGTERM does
def test_an_interrupted_first_use_keeps_nothing(own_cache: Path, end: signal.Signals, code: int) -> None:
    process = start_making(own_cache, own_cache.with_suffix(".txt"))
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 1
    process.send_signal(end)
    assert process.wait(timeout=60) == code and "Traceback" not in process.read_output()
    assert psutil.wait_procs(children, timeout=10)[1] == [], "it does not outlive who asked for it"
    assert not list(own_cache.glob("demo-*"))
    clear_unfinished()
    assert not list(own_cache.glob("tmp*"))


@pytest.mark.slow
def test_whoever_asks_gets_the_same_bits_and_nothing_else_is_left(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a launcher with two processes, with two threads and settings of torch's that change numbers.

    Only three steps of its training are taken.
    """
    train = demo._train_apart
    train(tmp_path, SILENT, max_steps=3)
    monkeypatch.setattr(demo, "_train_apart", lambda place, progress: train(place, progress, max_steps=3))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "OMP_NUM_THREADS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    torch.set_float32_matmul_precision("medium")
    made = demo.ensure_demo_model()
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (made / name).read_bytes() == (tmp_path / "trained" / name).read_bytes()
    weights = [(tmp_path / stage / "model.safetensors").read_bytes() for stage in ("untrained", "trained")]
    assert weights[0] != weights[1], "three steps change the weights"
    assert demo.find_demo_model() == made
    assert {path.name for path in own_cache.iterdir()} <= {made.name, "reference"}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The built-in model, made and sealed as it is but for its training."""
    monkeypatch.setattr(demo, "_train_apart", lambda place, progress: demo._save_untrained(place / "trained"))
    return demo.ensure_demo_model()


def test_it_is_a_checkpoint_like_any_other_and_no_run(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    subject = describe_subject(str(folder), ScoreConfig(data="builtin:demo"))
    assert subject.reference is None and subject.folder.path == Path("runs") / folder.name


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "made.json"])
def test_one_that_was_changed_is_not_taken_for_it(folder: Path, name: str) -> None:
    assert demo.find_demo_model() == folder
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert demo.find_demo_model() is None


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: Any, root: str) -> None:
    (tmp_path / "file").write_text("keep")
    monkeypatch.setenv("DPOTOOL_CACHE", str(tmp_path / root))
    with pytest.raises(DpotoolError, match=r"file.*: cannot be written, a file stands where a folder is needed"):
        demo.ensure_demo_model()


def test_a_model_is_found_by_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DEMO_MODEL", replace(demo.DEMO_MODEL, make=lambda progress: Path("made")))
    names = ["builtin:demo", "org/model", "runs/mine"]
    assert list(map(locate_model, names)) == ["made", "org/model", "runs/mine"]
    assert list(map(is_builtin, names)) == [True, False, False]


def test_a_stand_in_is_untrained_and_makes_nothing(own_cache: Path) -> None:
    with standing_in():
        folder = Path(locate_model("builtin:demo"))
        assert folder == Path(locate_model("builtin:demo")) and (folder / "model.safetensors").is_file()
        assert load_tokenizer("builtin:demo").vocab_size == 1024
    assert not folder.exists() and not list(own_cache.glob("demo-*"))


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
