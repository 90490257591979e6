"""Which parameters each choice means, how it is called, and what is refused."""

from __future__ import annotations

import pytest
import torch
from model_families import build_family
from peft import LoraConfig, get_peft_model
from torch import nn

from dpotool.errors import DpotoolError
from dpotool.gradients.ghost.selection import select_parameters


def names(family: str, choice: str) -> list[str]:
    return list(select_parameters(build_family(family), choice).parameters)


def test_all_are_those_that_are_trained():
    model = build_family("llama")
    model.model.layers[0].requires_grad_(False)
    selection = select_parameters(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert list(selection.parameters) == trained and len(trained) == 12
    assert selection.label == "all trained parameters"


@pytest.mark.parametrize(("family", "prefix"), [("llama", "model.layers.1."), ("gpt2", "transformer.h.1.")])
def test_last_layers_are_what_lies_inside_them(family: str, prefix: str):
    model = build_family(family)
    expected = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    assert names(family, "last-1") == expected != []
    assert select_parameters(model, "last-2").label == "last 2 of 2 layers"
    assert all(".0." in name or ".1." in name for name in names(family, "last-2"))


def test_the_head_is_the_output_layer_also_where_it_is_tied():
    assert names("llama", "head") == ["lm_head.weight"]
    assert names("llama-tied-biased", "head") == ["model.embed_tokens.weight"]


def test_lora_is_the_adapter():
    model = get_peft_model(build_family("llama"), LoraConfig(r=2, task_type="CAUSAL_LM"))
    selection = select_parameters(model, "lora")
    assert selection.parameters == select_parameters(model, "all").parameters
    assert selection.parameters and all("lora_" in name for name in selection.parameters)
    assert set(select_parameters(model, "last-1").parameters) < set(selection.parameters)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("body", "--parameters: no such choice of parameters; expected all, last-N, lora or head, got 'body'"),
        ("last-0", "--parameters: no such choice of parameters; expected all, last-N, lora or head, got 'last-0'"),
        ("last-3", "--parameters: the model has fewer layers; expected at most last-2, got last-3"),
        (
            "lora",
            "--parameters: none of the trained parameters is among these; "
            "expected a part of the model that is trained, got lora",
        ),
    ],
)
def test_a_choice_that_means_nothing_is_refused(choice: str, message: str):
    with pytest.raises(DpotoolError) as error:
        select_parameters(build_family("llama"), choice)
    assert str(error.value) == message


def test_a_frozen_model_is_refused():
    with pytest.raises(DpotoolError, match="no parameter of the model is trained, so there is no gradient"):
        select_parameters(build_family("llama").requires_grad_(False))


def test_quantised_weights_are_refused():
    model = build_family("llama")
    small = nn.Parameter(model.model.layers[0].mlp.down_proj.weight.data.to(torch.float8_e4m3fn))
    model.model.layers[0].mlp.down_proj.weight = small
    with pytest.raises(DpotoolError) as error:
        select_parameters(model)
    assert str(error.value) == (
        "model.layers.0.mlp.down_proj.weight: quantised weights have no gradients; "
        "expected float32, bfloat16 or float16 weights. Name the model it was made from; train and theory-gap also "
        "take a LoRA adapter on quantised weights"
    )
    flagged = build_family("llama")
    flagged.is_quantized = True
    with pytest.raises(DpotoolError, match="quantised"):
        select_parameters(flagged)


def test_an_adapter_on_quantised_weights_is_no_quantised_model():
    model = get_peft_model(build_family("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    base = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    base.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    model.get_base_model().is_quantized = True
    names = list(select_parameters(model).parameters)
    assert names
    assert all("lora_" in name for name in names)
