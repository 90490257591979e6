"""The pairs that drive displacement: whose own part in a DPO step pushes the chosen answers of the others down most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dpotool.theory.advice import DOT_COLUMNS


def rank_drivers(frame: pd.DataFrame, n_top: int) -> list[tuple[int, dict[str, Any]]]:
    """Returns the `n_top` pairs with the most negative push, each with its place in the table.

    A DPO step at the reference moves along C mean_i (W_i - L_i), so pair i adds C/N (<W_i, mean W> - <L_i, mean W>) to
    the change of the mean chosen log-likelihood, the mean being over the other pairs. `push` is that, in nats per nat
    of mean margin that the whole step gains: the pushes of all pairs add up to DPO's `chosen_change` in the advice.
    `own_push` is what the pair does to its own chosen answer, C/N (|W_i|^2 - <W_i, L_i>), on the same scale.

    Args:
        frame: theory table with its `DOT_COLUMNS` filled.
    """
    ww, lw, wl, ll = (frame[name].to_numpy(dtype=np.float64) for name in DOT_COLUMNS)
    inner, chosen, rejected = (
        frame[name].to_numpy(dtype=np.float64)
        for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm")
    )
    n = len(frame)
    others = (n * (ww - lw) - (chosen - inner)) / (n - 1)
    gain = ((n * (ww - wl - lw + ll) - (chosen - 2 * inner + rejected)) / (n - 1)).sum()
    if not gain > 0:
        return []
    push, own_push = others / gain, (chosen - inner) / gain
    order = np.argsort(push, kind="stable")[:n_top]
    return [
        (int(place), {"pair_id": int(frame["pair_id"].iloc[place]), "push": push[place], "own_push": own_push[place]})
        for place in order
        if push[place] < 0
    ]
