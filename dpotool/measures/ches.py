"""CHES: how alike the hidden states of the two answers are, which foretells displacement (arXiv:2410.08847).

With h_k the decoder's last hidden state (`hidden_states[-1]`) that predicts token k of an answer, Definition 2 is

    CHES = <sum_k h+_k, sum_k h-_k> - |sum_k h+_k|^2

over the tokens of the chosen (+) and the rejected (-) answer: states from the last prompt token on, without the last
token's state, which predicts nothing. The authors' published results keep that last state; both forms are in use, so
both are given. The length-normalised forms divide each sum by the number of states in it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dpotool.likelihood.views import CompletionView

CHES_COLUMNS = ("ches", "ln_ches", "ches_all", "ln_ches_all")


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
