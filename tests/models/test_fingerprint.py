"""What a fingerprint of a model depends on beside its weights."""

from __future__ import annotations

import pytest
from model_families import build_family

from dpotool.models.fingerprint import fingerprint_model


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
