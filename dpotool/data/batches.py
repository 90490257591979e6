"""Batches by token budget: rows of similar length go together, which keeps padding small and memory bounded."""

from __future__ import annotations

from collections.abc import Sequence

from dpotool.errors import DpotoolError


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups rows into batches of at most `batch_tokens` tokens after padding.

    Args:
        lengths: tokens in each row.
        batch_tokens: limit on rows times longest row of a batch. A row that exceeds it alone is a batch of its own.

    Returns:
        Indices into `lengths`, each exactly once. The longest rows come first, so that a batch which does not fit into
        memory fails at once and the time left is not underestimated; equal lengths keep their order.

    Raises:
        DpotoolError: `batch_tokens` below 1.
    """
    if batch_tokens < 1:
        raise DpotoolError("--batch-tokens is out of range", expected="at least 1", got=str(batch_tokens))
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
