"""A model is scored with its checkpoint's weights, every one of them, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from model_families import FAMILIES, build_family
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from torch import Tensor

from dpotool.errors import DpotoolError
from dpotool.hub import refuse_pointer
from dpotool.models.loading import load_model, load_tokenizer

Weights = dict[str, Tensor]
HEAD, DOWN = "lm_head.weight", "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "m")


def change(folder: Path, by: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(by(load_file(path)), path, metadata={"format": "pt"})


def change_config(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if name not in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_every_family_saves_is_whole(family: str, tmp_path: Path) -> None:
    model = build_family(family, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


CHANGES: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "no output layer": (without(HEAD), "it lacks lm_head.weight"),
    "one tensor lost": (without(DOWN), f"it lacks {DOWN}"),
    "empty": (lambda _: {}, r"it lacks .*, .* and \d+ more"),
    "one too many": (lambda old: old | {"extra.weight": torch.zeros(2)}, "the model has no place for extra.weight"),
    "compiled": (lambda old: {f"_orig_mod.{k}": v for k, v in old.items()}, r"'_orig_mod\.' of torch\.compile"),
    "wrapped": (lambda old: {f"module.{k}": v for k, v in old.items()}, r"save model\.module"),
    "reward model": (
        lambda old: without(HEAD)(old) | {"score.weight": torch.zeros(1, 16)},
        "This is a reward or value model",
    ),
    "other shape": (lambda old: old | {HEAD: torch.zeros(259, 15)}, f"{HEAD} is 259 x 15 where the model has 259 x 16"),
    "integers": (lambda old: old | {DOWN: torch.ones(16, 32, dtype=torch.int8)}, f"{DOWN} holds integers"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_is_not_the_models_is_refused_by_name(name: str, folder: Path) -> None:
    by, said = CHANGES[name]
    change(folder, by)
    with pytest.raises(DpotoolError, match=said) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "said"), [(1, r"has no place for model\.layers\.1"), (3, r"it lacks model\.layers\.2")]
)
def test_another_depth(layers: int, said: str, folder: Path) -> None:
    change_config(folder, num_hidden_layers=layers)
    with pytest.raises(DpotoolError, match=said):
        load_model(str(folder))


def test_a_tied_checkpoint_needs_no_output_layer(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    change(folder, without(HEAD))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(load_model(str(folder)).get_output_embeddings().weight, embedding)  # type: ignore[operator]


@pytest.mark.parametrize("what", ["lost", "reshaped"])
def test_a_broken_expert_is_named(what: str, tmp_path: Path) -> None:
    build_family("mixtral", dtype=torch.float32).save_pretrained(tmp_path)
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    change(tmp_path, without(name) if what == "lost" else lambda old: old | {name: torch.zeros(5, 5)})
    with pytest.raises(DpotoolError, match=r"layers\.0.*experts"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("about", [{"quant_method": "abacus"}, {"bits": 4}])
def test_a_quantisation_nobody_knows_is_refused(about: dict[str, object], folder: Path) -> None:
    change_config(folder, quantization_config=about)
    with pytest.raises(DpotoolError, match="its quantisation is not one that transformers can read"):
        load_model(str(folder))


@pytest.mark.parametrize("epsilon", [float("inf"), float("nan"), -1e-5, 1e30])
def test_a_norm_that_would_make_all_tokens_equally_likely_is_refused(epsilon: float, folder: Path) -> None:
    change_config(folder, rms_norm_eps=epsilon)
    with pytest.raises(DpotoolError, match=r"config.json: rms_norm_eps: is no number that a norm can add"):
        load_model(str(folder))


def test_steps_are_no_epsilon(folder: Path) -> None:
    change_config(folder, warmup_steps=1000)
    load_model(str(folder))


def test_lost_shards_are_counted_and_named(folder: Path) -> None:
    change(folder, dict)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = load_file(folder / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {HEAD: "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    with pytest.raises(DpotoolError, match=r"1 of 2 weight files cannot be found: model-00002-of-00002\.safetensors"):
        load_model(str(folder))


def test_weights_that_may_not_be_read_are_said_to_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors itself says that there is no such file."""
    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(DpotoolError, match=r"cannot be read \(Permission denied\)\. Check who may read it"):
        refuse_pointer(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_called_one(name: str, folder: Path) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    load = load_tokenizer if name == "tokenizer.json" else load_model
    with pytest.raises(DpotoolError, match=rf"{name}: is a Git LFS pointer, not the file itself.*git lfs pull"):
        load(str(folder))


def test_a_tokenizer_of_another_version_is_one_line(folder: Path) -> None:
    """tokenizers raises a bare Exception for what it does not know."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": {"type": "FromTheFuture"}}))
    with pytest.raises(DpotoolError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_double_precision_runs_on_experts(tmp_path: Path) -> None:
    """The grouped matrix products of expert layers know no float64."""
    build_family("mixtral", dtype=torch.float32).save_pretrained(tmp_path)
    ids = torch.arange(3, 9)[None]
    single, double = (load_model(str(tmp_path), dtype=dtype)(input_ids=ids)[0] for dtype in ("float32", "float64"))
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-4)
