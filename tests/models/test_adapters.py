"""Adapters: put on whole or refused, trained as peft says, merged without moving what they do not adapt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_kinds import IDS, KINDS, save_adapter
from model_families import build_family
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM

from dpotool.errors import DpotoolError
from dpotool.models.adapters import load_adapter, mark_trained_parameters, merge_adapter, read_adapter_base
from dpotool.models.loading import load_model

peft = pytest.importorskip("peft", reason="adapters need peft (dpotool[peft])")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("m") / "base")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_computes_what_peft_computes_and_trains_what_peft_trains(
    kind: str, base: Path, tmp_path: Path
) -> None:
    folder, expected = save_adapter(tmp_path / "a", base, KINDS[kind]())
    loaded = load_model(str(folder), needs_gradients=True)
    with torch.no_grad():
        inner: Any = loaded.get_base_model()  # type: ignore[operator]
        assert torch.allclose(inner(input_ids=IDS).logits, expected, atol=1e-5)
    first = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    mark_trained_parameters(loaded)
    trained = {name: parameter for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert first == set(trained)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1.0)
    loaded.save_pretrained(tmp_path / "b")  # type: ignore[operator]
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    own = [name for name in before if "base_layer" not in name]  # peft saves an adapted embedding's base too
    assert all(not torch.equal(before[name], after[name]) for name in own), "all that is saved was trained"
    with torch.no_grad():  # and all that was trained is saved
        again: Any = load_model(str(tmp_path / "b"))
        assert torch.allclose(again(input_ids=IDS).logits, loaded(input_ids=IDS).logits, atol=1e-5)


def test_of_a_plain_model_every_parameter_is_trained() -> None:
    model = build_family("llama")
    model.requires_grad_(False)
    mark_trained_parameters(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, prompt_tuning_init="RANDOM"),
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
)
def test_what_is_not_in_the_layers_is_refused(config: Callable[[], Any], base: Path, tmp_path: Path) -> None:
    folder, _ = save_adapter(tmp_path / "a", base, config())
    with pytest.raises(DpotoolError, match="does not act inside the model's layers"):
        load_model(str(folder))


@pytest.mark.parametrize("change", ["renamed", "one-lost", "one-more", "reshaped", "empty"])
def test_an_adapter_that_does_not_fit_whole_is_refused(change: str, base: Path, tmp_path: Path) -> None:
    folder, _ = save_adapter(tmp_path / "a", base, KINDS["lora"]())
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    said = name
    if change == "renamed":
        weights = {key.replace("model.model", "model._orig_mod.model"): value for key, value in weights.items()}
        said = "torch.compile"
    elif change == "one-lost":
        del weights[name]
    elif change == "one-more":
        weights["base_model.model.nowhere.lora_A.weight"] = torch.zeros(2, 2)
        said = "no place for base_model.model.nowhere"
    elif change == "reshaped":
        weights[name] = torch.zeros(5, 7)
        said = rf"{name} is 5 x 7 where the model has 2 x 32"
    else:
        weights = {}
        said = "it lacks"
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(DpotoolError, match=said) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


def test_a_pickled_adapter_is_not_read(base: Path, tmp_path: Path) -> None:
    folder, _ = save_adapter(tmp_path / "a", base, KINDS["lora"]())
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()
    with pytest.raises(DpotoolError, match=r"no adapter_model\.safetensors in it; got adapter_model\.bin"):
        load_model(str(folder))


@pytest.mark.parametrize("named", ["/home/someone/base", None, 7])
def test_a_base_of_another_machine_is_told(named: object, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
    with pytest.raises(DpotoolError, match="Set base_model_name_or_path"):
        read_adapter_base(str(tmp_path))


def test_lora_on_a_tied_head_is_merged_without_moving_the_embedding() -> None:
    model = build_family("llama-tied-biased")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        expected = adapted(input_ids=IDS).logits
        merged: Any = merge_adapter(adapted)
        assert torch.allclose(merged(input_ids=IDS).logits, expected, atol=1e-8)


def test_an_adapter_on_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    folder, _ = save_adapter(tmp_path / "a", base, KINDS["lora"]())
    with pytest.raises(DpotoolError, match="where the model has"):
        load_adapter(build_family("llama"), str(folder))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_an_adapter_trained_in_float32_is_scored_in_it(
    dtype: torch.dtype, expected: torch.dtype, tmp_path: Path
) -> None:
    """What it changes is less than a bfloat16 base model rounds away; --dtype still decides."""
    base = save_tiny_model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    folder, _ = save_adapter(tmp_path / "a", base, KINDS["lora"]())
    path = folder / "adapter_model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    weights = {parameter.dtype for name, parameter in load_model(str(folder)).named_parameters() if "lora" not in name}
    assert weights == {expected}
    forced = load_model(str(folder), dtype="bfloat16")
    assert forced.get_parameter("base_model.model.lm_head.weight").dtype == torch.bfloat16
