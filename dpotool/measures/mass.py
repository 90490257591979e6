"""Where the probability of the next token lies, under the policy and under the reference, position by position.

At a position of an answer the probability is cut into five disjoint parts that sum to one under each model:

    token        the answer's own token
    other_side   the other answer's next token, where the two have just diverged (`measures.spans`), else null
    ref_top      the reference's most likely token
    top          the policy's most likely token
    rest         everything else

Where two coincide, the first named has it and the later one is 0. What the answer's token lost between reference and
policy has gone to the other parts, so their changes add up to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from dpotool.likelihood.views import CompletionView
from dpotool.measures.spans import NONE

PARTS = ("token", "other_side", "ref_top", "top", "rest")
MODELS = ("", "ref_")
"""Prefixes of columns: the policy's, then the reference's."""


@dataclass
class VocabularyGains:
    """What every vocabulary item gained and lost over the positions looked into, summed: policy minus reference."""

    change: Float[np.ndarray, " vocab"] = field(default_factory=lambda: np.zeros(0))
    """Sum of probability differences."""
    n_first: Int[np.ndarray, " vocab"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Positions at which no other item gained more."""

    def add(self, change: Float[np.ndarray, " vocab"], n_first: Int[np.ndarray, " vocab"]) -> None:
        """Adds sums over further positions; those of a process that had none are empty."""
        if not len(change):
            return
        if not len(self.change):
            self.change, self.n_first = np.zeros(len(change)), np.zeros(len(change), dtype=np.int64)
        self.change += change
        self.n_first += n_first


def compute_mass(
    policy: CompletionView,
    reference: CompletionView,
    places: Int[Tensor, " n"],
    rivals: Int[Tensor, " n"],
    eos_id: int | None,
    gains: VocabularyGains,
) -> dict[str, np.ndarray]:
    """Looks into some positions of a batch; whole distributions are alive for a few of them at a time.

    Args:
        places: which of the views' tokens.
        rivals: the other answer's next token at each, or -1.
        eos_id: end token, whose probability is given beside the parts.
        gains: what the chosen answers' positions add to; sums over the vocabulary.

    Returns:
        Columns of the positions, in order: `p_<part>` and `ref_p_<part>` (float64, sum to one; `other_side` NaN where
        there is none), `p_eos`, `ref_p_eos`, `top_id`, `ref_top_id`, `entropy`, `ref_entropy` (nats),
        `total_variation` (half the sum of absolute differences), `gain_id` and `loss_id` (the items that gained and
        lost most), `gain` and `loss` (how much).
    """
    size = max(1, min(policy.chunk_size, reference.chunk_size) // 3)
    chunks = [
        _look(policy, reference, chunk, others, eos_id, gains)
        for chunk, others in zip(places.split(size), rivals.split(size), strict=True)
    ]
    if not chunks:
        return {}
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _look(
    policy: CompletionView,
    reference: CompletionView,
    places: Int[Tensor, " n"],
    rivals: Int[Tensor, " n"],
    eos_id: int | None,
    gains: VocabularyGains,
) -> dict[str, np.ndarray]:
    p, q = (view.compute_distributions(places).exp() for view in (policy, reference))  # (n, vocab)
    width = max(p.shape[1], q.shape[1])  # embeddings of one vocabulary may be padded to different sizes
    p, q = (F.pad(each, (0, width - each.shape[1])) for each in (p, q))
    top, ref_top = p.argmax(dim=1), q.argmax(dim=1)
    owners = _find_owners(policy.token_ids[places], rivals, ref_top, top)
    columns: dict[str, Tensor] = {}
    for prefix, each in zip(MODELS, (p, q), strict=True):
        columns |= {f"{prefix}p_{part}": values for part, values in _cut(each, owners).items()}
        columns[f"{prefix}p_eos"] = each[:, eos_id] if eos_id is not None else torch.full_like(each[:, 0], torch.nan)
        columns[f"{prefix}entropy"] = torch.special.entr(each).sum(dim=1)
    columns |= {"top_id": top, "ref_top_id": ref_top}
    difference = p - q
    columns["total_variation"] = difference.abs().sum(dim=1) / 2
    gained, lost = difference.max(dim=1), difference.min(dim=1)
    columns |= {"gain_id": gained.indices, "gain": gained.values, "loss_id": lost.indices, "loss": lost.values}
    n_first = torch.bincount(gained.indices, minlength=width)
    gains.add(difference.sum(dim=0, dtype=torch.float64).cpu().numpy(), n_first.cpu().numpy())
    return {name: _to_numpy(values) for name, values in columns.items()}


def _find_owners(
    token: Int[Tensor, " n"], rival: Int[Tensor, " n"], ref_top: Int[Tensor, " n"], top: Int[Tensor, " n"]
) -> Mapping[str, tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]]:
    """Returns each part's token and whether it is the first to name it."""
    is_rival = rival != NONE
    is_ref_top = (ref_top != token) & (ref_top != rival)
    is_top = (top != token) & (top != rival) & (top != ref_top)
    return {
        "token": (token, torch.ones_like(is_rival)),
        "other_side": (rival.clamp(min=0), is_rival),
        "ref_top": (ref_top, is_ref_top),
        "top": (top, is_top),
    }


def _cut(
    probabilities: Float[Tensor, "n vocab"], owners: Mapping[str, tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]]
) -> dict[str, Float[Tensor, " n"]]:
    parts: dict[str, Tensor] = {}
    for name, (ids, is_first) in owners.items():
        parts[name] = probabilities.gather(1, ids[:, None]).squeeze(1).double() * is_first
    parts["rest"] = (1 - torch.stack(list(parts.values())).sum(dim=0)).clamp(min=0)
    parts["other_side"] = parts["other_side"].masked_fill(~owners["other_side"][1], torch.nan)
    return parts


def _to_numpy(values: Tensor) -> np.ndarray:
    return (values.double() if values.is_floating_point() else values).cpu().numpy()
