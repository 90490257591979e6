"""A linear layer over the rows of a batch that computes no result twice and none that is not needed.

Forward, the prompt of a pair is computed once for both rows, and padding not at all. Backward, the prompt's gradients
differ and are both needed, but padding is left out, and so are leading tokens that nothing depends on: behind the last
layer's attention only completion tokens matter. Pair by pair; the results are those of the plain layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpotool.gradients.ghost.layout import ALIGNMENT, TokenLayout

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
