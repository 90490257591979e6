"""Which parameters training moves."""

from __future__ import annotations

import pytest
from model_families import build_family

from dpotool.models.adapters import is_adapter_parameter, mark_trained_parameters


def test_of_a_plain_model_every_parameter_is_trained():
    model = build_family("llama")
    model.requires_grad_(False)
    mark_trained_parameters(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_of_an_adapted_model_only_the_adapter_is_trained_and_saved_modules_belong_to_it():
    peft = pytest.importorskip("peft", reason="LoRA needs peft (dpotool[peft])")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(build_family("llama"), config)
    model.requires_grad_(True)
    mark_trained_parameters(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_adapter_parameter(name)}
    assert any("q_proj.lora_A" in name for name in trained)
    assert any("lm_head.modules_to_save" in name for name in trained)
    assert not any("base_layer" in name or "original_module" in name for name in trained)
