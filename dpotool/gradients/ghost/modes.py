"""Contexts that change the state of a model and restore it at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from dpotool.likelihood.completions import is_sharded


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turns dropout and router noise off. Modules that were set apart from the model's mode are set back one by one."""
    kept = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in kept:
            module.training = training


@contextmanager
def training_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets these parameters have a gradient, and no other."""
    kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in parameters}
    for parameter, _ in kept:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, requires_grad in kept:
            parameter.requires_grad_(requires_grad)


@contextmanager
def differentiating_activations(model: nn.Module, taps: AbstractContextManager[object]) -> Iterator[None]:
    """Sets evaluation mode and freezes every parameter; gradient checkpointing stays in force if it is on.

    Args:
        taps: entered while a checkpointed layer is computed again, as it must have been for the first time.
    """
    with evaluation_mode(model), training_only(model, ()), _checkpointing(model, taps):
        yield


@contextmanager
def following_shards(model: nn.Module, names: Iterable[str], watch: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Tells which tensors stand for the parameters of these names where weights are sharded (`fully_shard`).

    A sharded parameter is whole, and another tensor, while the part of the model that it was sharded with runs.
    """
    if not is_sharded(model):
        yield
        return
    parts: dict[str, Any] = {name: part for name, part in model.named_modules() if isinstance(part, FSDPModule)}
    members: dict[str, list[str]] = {part: [] for part in parts}
    for name in names:
        members[max((part for part in parts if not part or name.startswith(f"{part}.")), key=len)].append(name)

    def tell(part: str, *_: object) -> None:
        for name in members[part]:
            owner, _dot, leaf = name.rpartition(".")
            watch(name, getattr(model.get_submodule(owner), leaf))

    handles = [module.register_forward_pre_hook(partial(tell, part)) for part, module in parts.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _checkpointing(model: nn.Module, taps: AbstractContextManager[object]) -> Iterator[None]:
    """Checkpoints the layers that transformers would, but only in training mode, which would bring dropout back."""
    layers = [module for module in model.modules() if _is_checkpointed(module)]
    kept = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_checkpoint, layer.forward, taps)
    try:
        yield
    finally:
        for layer, forward in zip(layers, kept, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def _is_checkpointed(module: nn.Module) -> bool:
    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


def _checkpoint(forward: Callable[..., Any], taps: AbstractContextManager[object], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), taps),
        **kwargs,
    )
