"""Which parameters training moves: an adapter's own where the model has one."""

from __future__ import annotations

from torch import nn


def is_adapter_parameter(name: str) -> bool:
    """Tells by its name in `named_parameters()` whether a parameter belongs to a PEFT adapter."""
    return "lora_" in name or "modules_to_save" in name


def mark_trained_parameters(model: nn.Module) -> None:
    """Lets an adapter's own parameters have a gradient, and no other; of a model without an adapter, all."""
    named = dict(model.named_parameters())
    has_adapter = any(map(is_adapter_parameter, named))
    for name, parameter in named.items():
        parameter.requires_grad_(is_adapter_parameter(name) or not has_adapter)
