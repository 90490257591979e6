"""Catches, in one backward pass, what every claimed parameter's gradient is made of: operands and output gradients.

A tap is an autograd function that lets its tensor through. Operands are its saved tensors, so under gradient
checkpointing they are dropped and recomputed like all others (a hook's closure would keep them).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from dpotool.gradients.ghost.audit import Claims
from dpotool.gradients.ghost.layout import TokenLayout
from dpotool.gradients.ghost.outer import SharedInput
from dpotool.gradients.ghost.rowwise_linear import (
    apply_backward,
    apply_linear,
    is_worthwhile,
    skip_tokens_without_gradient,
)
from dpotool.gradients.ghost.sums import raise_precision
from dpotool.gradients.ghost.uses import Form, ParameterUses, Part, Use


class Sink(Protocol):
    """What is done with the captured factors, which are not stored."""

    def add_outer(
        self, part: Part, layout: TokenLayout, shared: SharedInput, operand: Tensor, output_grad: Tensor
    ) -> None:
        """Gradients sum_t g_t x_tᵀ."""

    def start_lookup(self, part: Part, ids: Tensor) -> None:
        """Notes an embedding lookup in the forward pass."""

    def add_lookup(
        self, part: Part, layout: TokenLayout, ids: Tensor, output_grad: Tensor, padding_idx: int | None
    ) -> None:
        """Gradients that add g_t to row ids_t, except row `padding_idx`."""

    def add_dense(self, part: Part, layout: TokenLayout, gradient: Float[Tensor, "completions elements"]) -> None:
        """Gradients themselves."""


class Taps(ParameterUses):
    """While active, taps every claimed use. `layout` says how the tokens lie, and is set before each stage.

    Args:
        keeps_layers: run every layer unchanged, as is necessary if its weights need gradients too.
    """

    def __init__(self, named: Mapping[str, Tensor], claims: Claims, sink: Sink, *, keeps_layers: bool = False) -> None:
        super().__init__({name: named[name] for name in claims.forms})
        self.layout: TokenLayout | None = None
        self.n_pairs_seen: Counter[str] = Counter()
        self._claims = claims
        self._sink = sink
        self._keeps_layers = keeps_layers
        self._inputs: dict[int, tuple[weakref.ref[Tensor], SharedInput]] = {}
        self._anchor = torch.zeros((), requires_grad=True)  # makes outputs need a gradient, with all parameters frozen

    def on_use(self, use: Use, compute: Callable[[], Tensor]) -> Tensor:
        assert self.layout is not None
        shared = None
        for part in use.parts:
            if part.form is Form.OUTER and use.operand is not None:
                shared = self._find_shared(use.operand)
                shared.add_layer(part.tensor.shape[1 if part.is_transposed else 0])
            elif part.form is Form.LOOKUP and use.operand is not None:
                self._sink.start_lookup(part, use.operand)
        # Without the operand: that is for autograd to keep and to let go.
        capture = _Capture(self, replace(use, operand=None), self.layout, shared)
        if use.linear is not None and not self._keeps_layers and is_worthwhile(self.layout):
            return _RowwiseLinear.apply(use.operand, self._anchor, capture, *use.linear)
        return _Tap.apply(compute(), self._anchor, capture, use.operand)

    def end_forward(self) -> None:
        """Forgets the inputs seen, so that a recomputed one is not taken for another layer's."""
        self._inputs.clear()

    def check_complete(self, n_pairs: int) -> None:
        """Raises RuntimeError unless every claimed parameter was met once for every pair and use it was claimed for."""
        for name, forms in self._claims.forms.items():
            if self.n_pairs_seen[name] != n_pairs * len(forms):
                raise RuntimeError(
                    f"{name}: expected {n_pairs * len(forms)} gradients of pairs, got {self.n_pairs_seen[name]}; "
                    "the model did not do with it what it did when it was looked at"
                )

    def _find_shared(self, operand: Tensor) -> SharedInput:
        """Recognises an input by identity: a reference that is alive cannot belong to another, later tensor."""
        known = self._inputs.get(id(operand))
        if known is not None and known[0]() is operand:
            return known[1]
        shared = SharedInput(operand.shape[-1])
        self._inputs[id(operand)] = (weakref.ref(operand), shared)
        return shared

    def receive(self, capture: _Capture, output_grad: Tensor, operand: Tensor | None) -> None:
        """Hands the parts of one use over to the sink."""
        use, layout = capture.use, capture.layout
        for part in use.parts:
            self.n_pairs_seen[part.name] += layout.pairs.stop - layout.pairs.start
            if part.form is Form.SHIFT:
                self._sink.add_dense(part, layout, _sum(layout, part, output_grad))
            elif operand is None:
                raise RuntimeError(f"{part.name}: its operand was not recorded")
            elif part.form is Form.LOOKUP:
                self._sink.add_lookup(part, layout, operand, output_grad, use.padding_idx)
            elif part.form is Form.SCALE:
                factor = operand if use.prepare is None else use.prepare(operand)
                self._sink.add_dense(part, layout, _sum(layout, part, raise_precision(output_grad) * factor))
            elif capture.shared is not None:
                self._sink.add_outer(part, layout, capture.shared, operand, output_grad)
                capture.shared.finish_layer()


@dataclass(frozen=True, slots=True)
class _Capture:
    taps: Taps
    use: Use
    layout: TokenLayout
    shared: SharedInput | None


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, capture: _Capture, operand: Tensor | None) -> Tensor:
        ctx.capture = capture
        ctx.save_for_backward(operand)
        return output.detach()  # not a view, which may not be changed in place

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor, None, None, None]:
        (operand,) = ctx.saved_tensors
        ctx.capture.taps.receive(ctx.capture, output_grad, operand)
        return output_grad, None, None, None


class _RowwiseLinear(torch.autograd.Function):
    """Stands in for a linear layer, and taps it."""

    @staticmethod
    def forward(
        ctx: Any, operand: Tensor, anchor: Tensor, capture: _Capture, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.capture = capture
        ctx.save_for_backward(operand, weight)
        return apply_linear(capture.layout, operand, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        operand, weight = ctx.saved_tensors
        capture = ctx.capture
        layout = skip_tokens_without_gradient(capture.layout, output_grad)
        capture.taps.receive(replace(capture, layout=layout), output_grad, operand)
        needs_grad = ctx.needs_input_grad[0]
        return apply_backward(layout, output_grad, weight) if needs_grad else None, None, None, None, None


def _sum(layout: TokenLayout, part: Part, values: Tensor) -> Float[Tensor, "completions elements"]:
    return layout.sum_completions(raise_precision(values), part.tensor.numel())
