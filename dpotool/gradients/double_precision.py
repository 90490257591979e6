"""Computes a model wholly in float64 for a while, so that the error of a prediction is not rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dpotool.errors import DpotoolError
from dpotool.likelihood.completions import get_causal_lm
from dpotool.models.weights import has_quantised_weights


class EverythingInFloat64(TorchFunctionMode):
    """Lifts the casts to float32 that transformers makes in norms, soft-max and rotary embeddings of any model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Computes with float64 copies of the parameters; the parameters themselves come back, bit for bit.

    Raises:
        DpotoolError: some of them are quantised.
    """
    if has_quantised_weights(model):
        raise DpotoolError(
            "computes in float64, which quantised weights cannot be copied to",
            where="--verify",
            remedy="Use --check, which compares with autograd in the types that the model computes in",
        )
    settings: Any = get_causal_lm(model).config
    experts = getattr(settings, "_experts_implementation", None)
    kept = [(parameter, parameter.data, parameter.grad) for parameter in model.parameters()]
    for parameter, data, _ in kept:
        parameter.grad = None  # a gradient must have its parameter's type
        parameter.data = data.double()
    if experts is not None:
        settings._experts_implementation = "eager"  # grouped kernels know no float64
    try:
        with EverythingInFloat64():
            yield
    finally:
        if experts is not None:
            settings._experts_implementation = experts
        for parameter, data, grad in kept:
            parameter.grad = None
            parameter.data = data
            parameter.grad = grad
