"""What rounding alone does to a score: the same pairs scored twice, in different company."""

from __future__ import annotations

from typing import Any

import numpy as np


def summarize_noise(
    first: tuple[np.ndarray, np.ndarray | None], second: tuple[np.ndarray, np.ndarray | None], beta: float | None
) -> dict[str, Any]:
    """Returns the noise floor of a scoring from two scorings of a sample of its pairs.

    `{"largest", "typical"}` (the median) of absolute differences: of `logps` and `ref_logps` over both completions, in
    nats, and of `reward_margins`; None for what needs a reference without one.

    Args:
        first, second: policy values, and reference values or None: (pairs, 2) arrays, chosen then rejected.
    """
    policy = second[0] - first[0]
    noise: dict[str, Any] = {"n": len(policy), "logps": _describe(policy), "ref_logps": None, "reward_margins": None}
    if first[1] is not None and second[1] is not None:
        reference = second[1] - first[1]
        noise["ref_logps"] = _describe(reference)
        if beta is not None:
            changes = beta * (policy - reference)
            noise["reward_margins"] = _describe(changes[:, 0] - changes[:, 1])
    return noise


def _describe(differences: np.ndarray) -> dict[str, float] | None:
    sizes = np.abs(differences[np.isfinite(differences)])
    return {"largest": float(sizes.max()), "typical": float(np.median(sizes))} if sizes.size else None
