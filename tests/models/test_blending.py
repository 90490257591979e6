"""Between two models: the ends bit for bit, averages as by hand, adapters as sums of products, and what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_kinds import IDS, KINDS, save_adapter
from tiny_models import save_tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dpotool.errors import DpotoolError
from dpotool.models.adapters import merge_adapter
from dpotool.models.blending import WeightLine, can_concatenate, check_alike, find_ties, save_checkpoint
from dpotool.models.loading import load_model, load_tokenizer

peft = pytest.importorskip("peft", reason="adapters need peft (dpotool[peft])")


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ends")
    return save_tiny_model(folder / "a", seed=0), save_tiny_model(folder / "b", seed=1)


def open_line(first: Path, second: Path, dtype: str = "auto") -> WeightLine:
    load = partial(load_model, dtype=dtype, device="cpu")
    return WeightLine(partial(load, str(first)), partial(load, str(second)), (first.name, second.name))


def compute_logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits
    return logits


def build_tiny(*, tied: bool = False, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 31, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes), tie_word_embeddings=tied))


def line_between(first: Callable[[], nn.Module], second: Callable[[], nn.Module]) -> WeightLine:
    return WeightLine(first, second, ("one", "other"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_ends_are_the_ends_and_the_middle_is_the_average_in_float64(ends: tuple[Path, Path], dtype: str) -> None:
    line = open_line(*ends, dtype)
    a, b = (load_model(str(end), dtype=dtype, device="cpu").state_dict() for end in ends)
    for weight in (0.5, 0.0, 0.3, 1.0, 0.3):  # in any order: no point depends on the one before
        found = line.at(weight).state_dict()
        assert found.keys() == a.keys()
        for name, value in found.items():
            by_hand = (1 - weight) * a[name].double() + weight * b[name].double()
            expected = {0.0: a[name], 1.0: b[name]}.get(weight)
            if expected is not None:
                assert torch.equal(value, expected)
            else:  # the order of the float64 operations may turn the rounding to the model's type
                spacing = torch.finfo(value.dtype).eps * by_hand.abs()
                assert ((value.double() - by_hand).abs() <= 0.5001 * spacing + 1e-12).all(), name


def test_what_both_ends_share_stays_as_it_is(tmp_path: Path, ends: tuple[Path, Path]) -> None:
    same = save_tiny_model(tmp_path / "same", seed=0)
    found, expected = open_line(ends[0], same).at(0.3).state_dict(), load_model(str(same)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_memory_holds_two_models_and_the_second_is_read_once() -> None:
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    loaded: list[tuple[int, int]] = []

    def load(seed: int) -> nn.Module:
        model = build_tiny(seed=seed)
        gc.collect()
        alive.add(model)
        loaded.append((seed, len(alive)))
        return model

    line = line_between(partial(load, 0), partial(load, 1))
    for weight in (0.25, 0.5, 0.75):
        line.at(weight)
    assert loaded == [(0, 1), (1, 2), (0, 2), (0, 2)], "which end, and how many models there were then"


def test_tied_weights_stay_tied_and_are_moved_once() -> None:
    model = line_between(partial(build_tiny, tied=True), partial(build_tiny, tied=True, seed=1)).at(0.25)
    inner: Any = model
    assert inner.lm_head.weight is inner.model.embed_tokens.weight
    assert find_ties(model)["lm_head.weight"] == "model.embed_tokens.weight"
    a, b = (build_tiny(tied=True, seed=seed).lm_head.weight.double() for seed in (0, 1))
    torch.testing.assert_close(inner.lm_head.weight.double(), 0.75 * a + 0.25 * b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kinds", [("lora", "lora"), ("lora", "dora"), ("saved", "bias"), ("embedding", "embedding")])
def test_a_blend_of_adapters_is_the_blend_of_their_merged_weights(
    kinds: tuple[str, str], ends: tuple[Path, Path], tmp_path: Path
) -> None:
    folders = []
    for place, kind in enumerate(kinds):
        config = KINDS[kind]()
        if place and kind == "lora":  # another rank and another scale than the first one has
            config.r, config.lora_alpha, config.use_rslora = 3, 5, True
        folder, _ = save_adapter(tmp_path / f"{place}", ends[0], config)
        if place:
            shift_adapter(folder)
        folders.append(folder)
    model = open_line(folders[0], folders[1]).at(0.3)
    is_adapter = kinds == ("lora", "lora")
    assert hasattr(model, "peft_config") == is_adapter
    merged = [merge_adapter(load_model(str(folder), device="cpu")).state_dict() for folder in folders]
    found = merge_adapter(model).state_dict()
    for name, value in found.items():
        expected = 0.7 * merged[0][name].double() + 0.3 * merged[1][name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    line = open_line(folders[0], folders[1])
    for weight, folder in zip((0.0, 1.0), folders, strict=True):
        assert torch.equal(compute_logits(line.at(weight)), compute_logits(load_model(str(folder), device="cpu")))


def shift_adapter(folder: Path) -> None:
    """Makes an adapter's weights others than those that the same seed gave the first one."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({name: value * 0.5 + 0.01 for name, value in load_file(path).items()}, path)


def test_averaging_the_factors_would_be_something_else(ends: tuple[Path, Path], tmp_path: Path) -> None:
    """1/2 B A + 1/2 B' A' against (B + B')/2 (A + A')/2: what the sum of products guards against is not small."""
    first, _ = save_adapter(tmp_path / "0", ends[0], KINDS["lora"]())
    second, _ = save_adapter(tmp_path / "1", ends[0], KINDS["lora"]())
    shift_adapter(second)
    models = [load_model(str(folder), device="cpu") for folder in (first, second)]
    assert can_concatenate(*models)
    ours = compute_logits(open_line(first, second).at(0.5))
    state, other = models[0].state_dict(), models[1].state_dict()
    for name in [name for name in state if "lora_" in name]:
        state[name].lerp_(other[name], 0.5)
    assert (compute_logits(models[0]) - ours).abs().max() > 1e-2


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_saved_blend_of_adapters_is_an_adapter_for_peft_alone(
    ends: tuple[Path, Path], tmp_path: Path, weight: float
) -> None:
    first, _ = save_adapter(tmp_path / "0", ends[0], KINDS["lora"]())
    second, _ = save_adapter(tmp_path / "1", ends[0], KINDS["lora"]())
    shift_adapter(second)
    model = open_line(first, second).at(weight)
    (tmp_path / "out").mkdir()
    save_checkpoint(model, load_tokenizer(str(ends[0])), tmp_path / "out")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(ends[0]), tmp_path / "out").eval()
    torch.testing.assert_close(compute_logits(again), compute_logits(model), rtol=1e-5, atol=1e-5)
    assert again.peft_config["default"].r == (2 if weight == 1 else 4)


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], str]] = {
    "shape": (build_tiny, partial(build_tiny, vocab_size=37), "37 x 8"),
    "layers": (build_tiny, partial(build_tiny, num_hidden_layers=2), "only one of them has the weight"),
    "settings": (build_tiny, partial(build_tiny, rms_norm_eps=0.1), "rms_norm_eps in config.json"),
    "ties": (build_tiny, partial(build_tiny, tied=True), "ties weights"),
    "type": (build_tiny, lambda: build_tiny().bfloat16(), "float32 in one and bfloat16 in the other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_without_a_line_between_them_are_refused(case: str) -> None:
    first, second, words = REFUSED[case]
    with pytest.raises(DpotoolError, match=words):
        line_between(first, second).at(0.5)


def test_quantised_weights_are_refused() -> None:
    first, second = build_tiny(), build_tiny()
    first.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(DpotoolError, match="quantised"):
        check_alike(first, second, ("one", "other"))
