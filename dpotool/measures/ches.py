"""How alike the two answers of a pair are inside the model: CHES, and gradient products of the output layer.

CHES (arXiv:2410.08847) foretells displacement from hidden states alone.

With h_k the decoder's last hidden state (`hidden_states[-1]`) that predicts token k of an answer, Definition 2 is

    CHES = <sum_k h+_k, sum_k h-_k> - |sum_k h+_k|^2

over the tokens of the chosen (+) and the rejected (-) answer: states from the last prompt token on, without the last
token's state, which predicts nothing. The authors' published results keep that last state; both forms are in use, so
both are given. The length-normalised forms divide each sum by the number of states in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpotool.likelihood.views import CompletionView

CHES_COLUMNS = ("ches", "ln_ches", "ches_all", "ln_ches_all")
HEAD_COLUMNS = ("head_inner_product", "head_chosen_sq_norm", "head_rejected_sq_norm")


def compute_ches(view: CompletionView) -> dict[str, Float[Tensor, " pairs"]]:
    """Returns the four forms for every pair of a view of chosen and rejected answers, float64.

    A higher value is a more alike pair. None of them has a unit that two models share.
    """
    sums = view.sum_states()  # (completions, hidden)
    counts = torch.bincount(view.completions, minlength=view.n_completions)
    with_ends = sums + view.end_states.double()
    return {
        "ches": _ches(sums),
        "ln_ches": _ches(sums / counts[:, None]),
        "ches_all": _ches(with_ends),
        "ln_ches_all": _ches(with_ends / (counts[:, None] + 1)),
    }


def _ches(sums: Float[Tensor, "completions hidden"]) -> Float[Tensor, " pairs"]:
    chosen, rejected = sums[0::2], sums[1::2]
    return (chosen * rejected).sum(dim=1) - chosen.square().sum(dim=1)


def compute_head_products(view: CompletionView) -> dict[str, Float[Tensor, " pairs"]]:
    """Products of the gradients W of log pi(chosen) and L of log pi(rejected) in the output layer's weights alone.

    With e_k the indicator of token k and p_k the distribution that predicted it, the gradient of an answer is
    sum_k (e_k - p_k) h_k^T, so <W, L> is the sum over tokens k of one answer and l of the other of
    <h_k, h_l> <e_k - p_k, e_l - p_l>. Returns <W, L>, |W|^2 and |L|^2 (nats^2), float64; NaN for a model whose logits
    are not just the output layer's product, such as one with soft-capping.
    """
    n_pairs = view.n_completions // 2
    if not view.has_plain_head():
        return {name: torch.full((n_pairs,), torch.nan, dtype=torch.float64) for name in HEAD_COLUMNS}
    rows: list[Float[Tensor, " 3"]] = []
    n_tokens = torch.bincount(view.completions, minlength=view.n_completions).view(-1, 2).tolist()
    start = 0
    for group in _group_pairs(n_tokens, view.chunk_size):
        places = torch.arange(start, start + sum(map(sum, group)), device=view.token_ids.device)
        start += len(places)
        rows += _multiply_heads(view, places, group)
    return dict(zip(HEAD_COLUMNS, torch.stack(rows, dim=1), strict=True))


def _group_pairs(n_tokens: Sequence[Sequence[int]], most: int) -> Iterator[list[Sequence[int]]]:
    """Cuts pairs into runs of at most so many tokens, or of one pair."""
    group: list[Sequence[int]] = []
    for pair in n_tokens:
        if group and sum(map(sum, group)) + sum(pair) > most:
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _multiply_heads(
    view: CompletionView, places: Int[Tensor, " tokens"], group: Sequence[Sequence[int]]
) -> Iterator[Float[Tensor, " 3"]]:
    """Yields the products of each pair of a group, whose tokens follow one another; one look at the output layer."""
    residuals = _residuals(view, places) if len(places) <= view.chunk_size else None
    states = view.states[places].double()
    end = 0
    for n_chosen, n_rejected in group:
        pair = slice(end, end := end + n_chosen + n_rejected)
        whole = _residual_products(view, places[pair]) if residuals is None else residuals[pair] @ residuals[pair].T
        kernel = whole.double() * (states[pair] @ states[pair].T)  # (tokens, tokens)
        chosen, rejected = slice(0, n_chosen), slice(n_chosen, None)
        parts = ((chosen, rejected), (chosen, chosen), (rejected, rejected))
        yield torch.stack([kernel[one, other].sum() for one, other in parts])


def _residual_products(view: CompletionView, places: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens tokens"]:
    """Returns <e_k - p_k, e_l - p_l> of all tokens of a pair; whole distributions of two blocks alive at a time."""
    blocks = torch.arange(len(places), device=places.device).split(view.chunk_size)
    products = torch.zeros(len(places), len(places), dtype=torch.float64, device=places.device)
    for number, block in enumerate(blocks):
        one = _residuals(view, places[block])
        for later, other in enumerate(blocks[number:]):
            product = (one @ (one if later == 0 else _residuals(view, places[other])).T).double()
            products[block[:, None], other] = product
            products[other[:, None], block] = product.T
    return products


def _residuals(view: CompletionView, places: Int[Tensor, " n"]) -> Float[Tensor, "n vocab"]:
    residuals = -view.compute_distributions(places).exp()
    residuals[torch.arange(len(places), device=places.device), view.token_ids[places]] += 1
    return residuals
