"""What cannot be loaded is one line that says why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pairs
from safetensors.torch import load_file, save_file
from tiny_models import build_byte_tokenizer, save_tiny_model

from dpotool.errors import DpotoolError
from dpotool.likelihood.scorer import Scorer
from dpotool.models import loading
from dpotool.models.determinism import resolve_max_length
from dpotool.models.identity import fingerprint_model, fingerprint_tokenizer
from dpotool.models.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("m") / "tiny")


def test_loads_in_evaluation_mode_in_the_type_asked_for(folder: Path) -> None:
    assert not load_model(str(folder)).training
    assert next(load_model(str(folder), dtype="bfloat16").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_missing_checkpoint(load: object) -> None:
    with pytest.raises(DpotoolError, match=r"nowhere/at-all: no such folder, and no (model|tokenizer) of that name"):
        load("nowhere/at-all")  # type: ignore[operator]


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(DpotoolError, match=r"holds no model: there is no config\.json"):
        load_model(str(tmp_path))


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    """A checkpoint that only has pytorch_model.bin is refused: unpickling runs code."""
    folder = save_tiny_model(tmp_path / "m")
    weights = folder / "model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(DpotoolError, match=r"its weights are only there as pytorch_model\.bin"):
        load_model(str(folder))


def test_half_written_weights(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DpotoolError, match="cannot be read as safetensors") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_tokenizer_without_eos(tmp_path: Path) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.eos_token = None
    folder = save_tiny_model(tmp_path / "m", tokenizer=tokenizer)
    with pytest.raises(DpotoolError, match="the tokenizer has no EOS token"):
        load_tokenizer(str(folder))


def test_unknown_dtype_and_device(folder: Path) -> None:
    with pytest.raises(DpotoolError, match="--dtype: unknown dtype 'float12'"):
        load_model(str(folder), dtype="float12")
    with pytest.raises(DpotoolError, match="--device: device 'abacus' is not usable"):
        load_model(str(folder), device="abacus")


def test_fingerprint_follows_the_content(folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder))
    assert fingerprint_model(model) == fingerprint_model(load_model(str(folder)))
    copy = tmp_path / "copy"
    model.save_pretrained(copy)
    assert fingerprint_model(load_model(str(copy))) == fingerprint_model(model), "the path does not count"
    before = fingerprint_model(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] += 1e-3
    assert fingerprint_model(model) != before
    assert fingerprint_model(load_model(str(folder), dtype="bfloat16")) != before


def test_fingerprint_of_a_tokenizer_follows_the_chat_template() -> None:
    assert fingerprint_tokenizer(build_byte_tokenizer()) == fingerprint_tokenizer(build_byte_tokenizer())
    other = build_byte_tokenizer(chat_template="{{ messages }}")
    assert fingerprint_tokenizer(other) != fingerprint_tokenizer(build_byte_tokenizer())


def test_max_length_respects_the_models_positions(folder: Path) -> None:
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    assert resolve_max_length(None, model, tokenizer) == 256
    assert resolve_max_length(100, model, tokenizer) == 100
    with pytest.raises(
        DpotoolError, match=r"--max-length: longer than the model has positions for; expected at most 256, got 300"
    ):
        resolve_max_length(300, model, tokenizer)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_which_a_part_lies_on_disk_gives_the_same_numbers_and_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """What `--device-map auto` does where memory is short: here a layer and the output layer stay on disk."""
    folder = save_tiny_model(tmp_path / "m")
    if tied:
        settings = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
        (folder / "config.json").write_text(json.dumps(settings))
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: part for name, part in weights.items() if name != "lm_head.weight"}, folder / "model.safetensors"
        )
    whole = load_model(str(folder))
    head = "cpu" if tied else "disk"
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"), "cpu")
    places |= {"model.layers.1": "disk", "lm_head": head}
    monkeypatch.setattr(loading, "_place", lambda *_, **__: {"device_map": places})
    spread = load_model(str(folder), device_map="auto")
    assert any(weight.is_meta for weight in spread.parameters())
    assert fingerprint_model(spread) == fingerprint_model(whole)
    pairs = make_pairs(5)
    expected, found = (
        Scorer(model, store=tmp_path / name).score(pairs) for name, model in (("a", whole), ("b", spread))
    )
    assert found.n_stored == 0
    np.testing.assert_array_equal(found.stack(), expected.stack())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device_map": "balanced"}, "--device-map: no such placement; expected auto, got 'balanced'"),
        ({"device_map": "auto", "device": "cpu"}, "--device cpu: one device and a placement over several"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(folder: Path, settings: dict[str, str], message: str) -> None:
    with pytest.raises(DpotoolError) as error:
        load_model(str(folder), **settings)
    assert str(error.value).startswith(message)
