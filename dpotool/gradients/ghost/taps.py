"""Catches, in one backward pass, what every claimed parameter's gradient is made of: operands and output gradients.

A tap is an autograd function that lets its tensor through. Operands are its saved tensors, so under gradient
checkpointing they are dropped and recomputed like all others (a hook's closure would keep them).

Linear layers go over a batch row by row where that saves tokens, with the results of the plain layer. Forward, the
prompt of a pair is computed once for both rows, and padding not at all. Backward, the prompt's gradients differ and are
both needed, but padding is left out, and so are leading tokens that nothing depends on: behind the last layer's
attention only completion tokens matter.
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
from dpotool.gradients.ghost.layout import ALIGNMENT, TokenLayout
from dpotool.gradients.ghost.outer import SharedInput, raise_precision
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


SMALLEST_ROWS = 96
"""Tokens of a row from which on the smaller products pay; below, a few larger ones are faster."""

LARGEST_SHARE = 0.65
"""Of all tokens; with a prompt of half the row, three quarters are computed, and one large product is as fast."""


def is_worthwhile(layout: TokenLayout) -> bool:
    """Tells whether going pair by pair saves more tokens than its smaller products cost, in rows long enough."""
    if not layout.has_own_rows:
        return False
    computed = sum(span.chosen[1].stop + span.rejected[1].stop - span.n_shared for span in layout.spans)
    total = layout.n_rows * layout.n_tokens
    return computed <= LARGEST_SHARE * total and computed >= SMALLEST_ROWS * layout.n_rows / 2


def apply_linear(layout: TokenLayout, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes inputs @ weight.T + bias; padding positions contain a copy of a real token's result."""
    rows = layout.as_rows(inputs)
    result = rows.new_empty(*inputs.shape[:-1], len(weight))  # not a view in the end: it may be changed in place
    outputs = layout.as_rows(result)
    for span in layout.spans:
        chosen, rejected = span.chosen[0].start, span.rejected[0].start
        n_chosen, n_rejected, n_shared = span.chosen[1].stop, span.rejected[1].stop, span.n_shared
        _multiply(rows[chosen, :n_chosen], weight, bias, outputs[chosen, :n_chosen])
        _multiply(rows[rejected, n_shared:n_rejected], weight, bias, outputs[rejected, n_shared:n_rejected])
        outputs[rejected, :n_shared] = outputs[chosen, :n_shared]
        outputs[chosen, n_chosen:] = outputs[chosen, 0]
        outputs[rejected, n_rejected:] = outputs[rejected, 0]
    return result


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.mm(inputs, weight.T, out=out)
    else:
        torch.addmm(bias, inputs, weight.T, out=out)


def skip_tokens_without_gradient(layout: TokenLayout, output_grad: Tensor) -> TokenLayout:
    """Leaves out each pair's leading tokens at which the gradient of both rows is zero."""
    if not layout.has_own_rows or layout.as_rows(output_grad)[:, 0].any():
        return layout  # by far the most layers: the first token is looked at by others
    spans = []
    for span, chosen, rejected in layout.split(output_grad):
        n_shared = span.n_shared
        has_gradient = chosen[0, :n_shared].any(1) | rejected[0, :n_shared].any(1)
        n_leading = int(has_gradient.int().argmax()) if has_gradient.any() else n_shared
        spans.append(span.skip(n_leading // ALIGNMENT * ALIGNMENT))
    return layout.with_spans(spans)


def apply_backward(layout: TokenLayout, output_grad: Tensor, weight: Tensor) -> Tensor:
    """Computes output_grad @ weight at the tokens of the layout's spans; zero elsewhere."""
    grads = layout.as_rows(output_grad)
    n_real = sum(tokens.stop - tokens.start for span in layout.spans for _, tokens in (span.chosen, span.rejected))
    if not layout.has_own_rows or n_real > 0.9 * layout.n_rows * layout.n_tokens:
        return output_grad @ weight
    results = grads.new_zeros(layout.n_rows, layout.n_tokens, weight.shape[1])
    for span in layout.spans:
        for rows, tokens in (span.chosen, span.rejected):
            torch.mm(grads[rows.start, tokens], weight, out=results[rows.start, tokens])
    return results.view(*output_grad.shape[:-1], weight.shape[1])
