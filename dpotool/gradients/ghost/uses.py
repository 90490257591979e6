"""Sees every operation a parameter takes part in during a forward pass, and recognises those with a known gradient.

Modules are not asked what they are: Gemma scales its embedding, Falcon multiplies by a transpose, OPT looks positions
up itself, routers are linear layers without being called so. What counts is the operation that receives the parameter.

| operation (P a parameter, y its output, g the gradient of y) | gradient of P for one row (sum over its tokens t) |
|---|---|
| y = linear(x, P), y = x @ P.T       | sum_t g_t x_tᵀ      (`OUTER`)      |
| y = addmm(b, x, P), y = x @ P       | sum_t x_t g_tᵀ      (`OUTER`, transposed) |
| y = embedding(ids, P)               | g_t added to row ids_t (`LOOKUP`) |
| y = P * z, weight of a layer norm   | sum_t g_t * z_t     (`SCALE`)      |
| y = P + z, any bias                 | sum_t g_t           (`SHIFT`)      |

A cast, a transpose and `1 + P` give another name ("alias") to the same parameter; its gradient is the parameter's.
"""
# ruff: noqa: A002 - the recognisers carry the names of torch's own arguments, by which they may be called

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Form(Enum):
    """What a row's gradient looks like; see the table above."""

    OUTER = "outer"
    LOOKUP = "lookup"
    SCALE = "scale"
    SHIFT = "shift"


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter's place in an operation."""

    name: str
    tensor: Tensor
    """The parameter or an alias of it."""
    form: Form
    is_transposed: bool = False
    """OUTER only: the gradient is sum_t x_t g_tᵀ in the shape of the parameter itself."""


@dataclass(frozen=True, slots=True)
class Use:
    """One recognised operation: the parameters in it and what their gradients need besides the output's."""

    parts: tuple[Part, ...]
    operand: Tensor | None
    """x of OUTER, ids of LOOKUP, z of SCALE before `prepare`; None if there are only shifts."""
    prepare: Callable[[Tensor], Tensor] | None = None
    """Makes z from the operand where that is cheaper than keeping z (layer norms)."""
    padding_idx: int | None = None
    """LOOKUP only: the row which torch gives no gradient."""
    linear: tuple[Tensor, Tensor | None] | None = None
    """Weight (outputs, inputs) and bias, if the operation is operand @ weight.T + bias."""


@dataclass(frozen=True, slots=True)
class Alias:
    """An operation whose result is a view or a cast of the same parameter."""

    source: Tensor
    is_transposed: bool = False


class ParameterUses(TorchFunctionMode):
    """While active, passes every recognised operation on the watched tensors to `on_use`.

    An operation that is not recognised runs unchanged and is not reported; the audit finds it by the edges of the
    autograd graph.
    """

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Held weakly: an alias must not outlive its use, and an id that was given to another tensor must not match.
        self._watched: dict[int, tuple[weakref.ref[Tensor], str, bool]] = {}
        for name, parameter in named.items():
            self.watch(name, parameter)

    def watch(self, name: str, tensor: Tensor) -> None:
        """Takes a tensor for the parameter of this name."""
        self._watched[id(tensor)] = (weakref.ref(tensor), name, False)

    def on_use(self, use: Use, compute: Callable[[], Tensor]) -> Tensor:
        """Stands in for a recognised operation, which `compute` would carry out, and returns its result."""
        raise NotImplementedError

    def on_alias(self, name: str, source: Tensor, alias: Tensor) -> None:
        """Notes that `alias` is another view of the parameter `source`."""

    def is_watched(self, value: object) -> bool:
        return id(value) in self._watched and self._watched[id(value)][0]() is value

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recognise = _RECOGNISERS.get(func)
        if recognise is None or not any(self.is_watched(value) for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        found = recognise(self, *args, **kwargs)
        if isinstance(found, Use):
            return self.on_use(found, lambda: func(*args, **kwargs))
        output = func(*args, **kwargs)
        if isinstance(found, Alias):
            self._register(found, output)
        return output

    def _register(self, found: Alias, alias: Tensor) -> None:
        if alias is found.source:
            return
        _, name, is_transposed = self._watched[id(found.source)]
        self._watched[id(alias)] = (weakref.ref(alias), name, found.is_transposed != is_transposed)
        self.on_alias(name, found.source, alias)

    def part(self, value: Tensor | None, form: Form, *, is_transposed: bool = False) -> tuple[Part, ...]:
        """Returns the part of a watched tensor, or none. A transposed alias turns an outer product around."""
        if value is None or not self.is_watched(value):
            return ()
        _, name, is_turned = self._watched[id(value)]
        if is_turned and form is not Form.OUTER:
            return ()
        return (Part(name, value, form, is_transposed != is_turned),)


def _cast(uses: ParameterUses, input: Tensor, *_: object, **__: object) -> Alias | None:
    return Alias(input) if uses.is_watched(input) else None


def _transpose(uses: ParameterUses, input: Tensor, *dims: int, **_: object) -> Alias | None:
    is_matrix = input.dim() == 2 and (not dims or {dim % 2 for dim in dims if isinstance(dim, int)} == {0, 1})
    return Alias(input, is_transposed=True) if is_matrix else None


def _linear(
    uses: ParameterUses,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Use | None:
    return _use((*uses.part(weight, Form.OUTER), *uses.part(bias, Form.SHIFT)), input, linear=(weight, bias))


def _addmm(
    uses: ParameterUses,
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    **scales: object,
) -> Use | None:
    if scales or input.shape != mat2.shape[1:]:
        return None
    parts = (*uses.part(mat2, Form.OUTER, is_transposed=True), *uses.part(input, Form.SHIFT))
    return _use(parts, mat1, linear=(mat2.T, input))


def _matmul(uses: ParameterUses, input: Tensor, other: Tensor) -> Use | None:
    if other.dim() != 2 or input.dim() < 2 or uses.is_watched(input):
        return None
    return _use(uses.part(other, Form.OUTER, is_transposed=True), input, linear=(other.T, None))


def _embedding(
    uses: ParameterUses,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Use | None:
    if max_norm is not None or scale_grad_by_freq:
        return None
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    return _use(uses.part(weight, Form.LOOKUP), input, padding_idx=padding_idx)


def _multiply(uses: ParameterUses, input: Any, other: Any) -> Use | None:
    parameter, operand = (input, other) if uses.is_watched(input) else (other, input)
    if not _broadcasts(parameter, operand) or uses.is_watched(operand):
        return None
    return _use(uses.part(parameter, Form.SCALE), operand)


def _add(uses: ParameterUses, input: Any, other: Any, **scales: object) -> Use | Alias | None:
    parameter, operand = (input, other) if uses.is_watched(input) else (other, input)
    if scales or uses.is_watched(operand):
        return None
    if isinstance(operand, int | float):
        return Alias(parameter)
    return _use(uses.part(parameter, Form.SHIFT), None) if _broadcasts(parameter, operand) else None


def _layer_norm(
    uses: ParameterUses,
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Use | None:
    parts = (*uses.part(weight, Form.SCALE), *uses.part(bias, Form.SHIFT))
    return _use(parts, input, prepare=lambda x: F.layer_norm(x, normalized_shape, eps=eps))


def _rms_norm(
    uses: ParameterUses,
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Use | None:
    return _use(uses.part(weight, Form.SCALE), input, prepare=lambda x: F.rms_norm(x, normalized_shape, eps=eps))


def _use(parts: tuple[Part, ...], operand: Tensor | None, **about: Any) -> Use | None:
    return Use(parts, operand, **about) if parts else None


def _broadcasts(parameter: Tensor, operand: object) -> bool:
    """Tells whether the parameter is spread over leading dimensions only, so that a row's gradient has its shape."""
    return (
        isinstance(operand, Tensor)
        and 0 < parameter.dim() < operand.dim()
        and parameter.shape == operand.shape[-parameter.dim() :]
    )


_T = torch.Tensor
_RECOGNISERS: dict[object, Callable[..., Use | Alias | None]] = {
    **dict.fromkeys((_T.float, _T.double, _T.half, _T.bfloat16, _T.to), _cast),
    **dict.fromkeys((_T.t, torch.t, _T.T.__get__, _T.mT.__get__, _T.transpose, torch.transpose), _transpose),  # type: ignore[attr-defined]
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, _T.matmul, _T.__matmul__), _matmul),
    F.embedding: _embedding,
    **dict.fromkeys((torch.mul, _T.mul, _T.__mul__, _T.__rmul__), _multiply),
    **dict.fromkeys((torch.add, _T.add, _T.__add__, _T.__radd__), _add),
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}
