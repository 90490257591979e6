"""The pairs that drive displacement: those whose part of a DPO step lowers the chosen answers of other pairs most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dpotool.theory.advice import DOT_COLUMNS


def compute_pushes(frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Returns what each pair's part in a DPO step does to the chosen answers of the others, and of the pair itself.

    A DPO step at the reference moves along C mean_i (W_i - L_i), so pair i adds C/N (<W_i, mean W> - <L_i, mean W>) to
    the change of the mean chosen log-likelihood, the mean being over the other pairs. The first column (`driver_score`)
    is that, in nats per nat of mean margin that the whole step gains: the scores of all pairs add up to DPO's
    `chosen_change` in the advice. The second is what the pair does to its own chosen answer, C/N (|W_i|^2 - <W_i,
    L_i>), on the same scale. None where a step gains no margin, by which nothing can be divided.

    Args:
        frame: theory table with its `DOT_COLUMNS` filled.
    """
    ww, lw, wl, ll = (frame[name].to_numpy(dtype=np.float64) for name in DOT_COLUMNS)
    inner, chosen, rejected = (
        frame[name].to_numpy(dtype=np.float64)
        for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm")
    )
    n = len(frame)
    if n < 2:
        return None
    others = (n * (ww - lw) - (chosen - inner)) / (n - 1)
    gain = ((n * (ww - wl - lw + ll) - (chosen - 2 * inner + rejected)) / (n - 1)).sum()
    return (others / gain, (chosen - inner) / gain) if gain > 0 else None


def rank_drivers(frame: pd.DataFrame, n_top: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the `n_top` pairs with the most negative push, each with its place in the table.

    Args:
        frame: theory table with its `DOT_COLUMNS` filled.
    """
    pushes = compute_pushes(frame)
    if pushes is None:
        return []
    push, own_push = pushes
    order = np.argsort(push, kind="stable")[:n_top]
    return [
        (int(place), {"pair_id": int(frame["pair_id"].iloc[place]), "push": push[place], "own_push": own_push[place]})
        for place in order
        if push[place] < 0
    ]
