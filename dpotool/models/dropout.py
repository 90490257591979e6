"""Makes a model deterministic: dropout and jitter are off in every loss, for every architecture.

With dropout, the policy would differ from the reference at step 0. Architectures store their rates as modules, as
numbers beside a functional call, or in the configuration; so whatever number goes by the name of drop or jitter is set
to zero, wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

_RATE = re.compile(r"drop|jitter")


def disable_dropout(model: nn.Module) -> None:
    """Sets every rate of dropout and jitter in modules and configurations to 0.

    Where a router reads its jitter in evaluation too (PhiMoE: as the distance within which experts compete), a zero
    would make another model of it. There the rate stays, and the router is kept in evaluation mode.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero(vars(module), re.compile("drop"))
    for config in _list_configs(getattr(model, "config", None)):
        _zero(vars(config), re.compile("drop"))
    noisy = [module for module in model.modules() if _list_rates(vars(module), re.compile("jitter"))]
    if noisy:
        _disable_jitter(model, noisy)


def _disable_jitter(model: nn.Module, noisy: list[nn.Module]) -> None:
    holders = [vars(module) for module in noisy] + [vars(config) for config in _list_configs(model.config)]
    before, rates = _compute_probe(model), [_list_rates(holder, _RATE) for holder in holders]
    for holder in holders:
        _zero(holder, _RATE)
    if not torch.equal(before, _compute_probe(model)):
        for holder, kept in zip(holders, rates, strict=True):
            holder.update(kept)
        for module in noisy:
            _keep_in_evaluation(module)


def _keep_in_evaluation(module: nn.Module) -> None:
    """Lets a module's training mode be off for good; its children change theirs as always."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        for child in self.children():
            child.train(mode)
        return self

    module.training = False
    module.train = MethodType(train, module)  # type: ignore[method-assign]


@torch.no_grad()
def _compute_probe(model: nn.Module) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(1, 17, device=next(model.parameters()).device)[None]
        logits: Tensor = model(input_ids=ids, use_cache=False)[0]
        return logits
    finally:
        model.train(was_training)


def _zero(holder: dict[str, Any], names: re.Pattern[str]) -> None:
    holder.update(dict.fromkeys(_list_rates(holder, names), 0.0))


def _list_rates(holder: dict[str, Any], names: re.Pattern[str]) -> dict[str, float]:
    """Returns the numbers above 0 whose name matches."""
    return {
        name: value for name, value in holder.items() if isinstance(value, float) and value > 0 and names.search(name)
    }


def _list_configs(config: object) -> Iterator[PreTrainedConfig]:
    """Yields a configuration and those inside it."""
    if isinstance(config, PreTrainedConfig):
        yield config
        for value in list(vars(config).values()):
            yield from _list_configs(value)
