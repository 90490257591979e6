"""Shares batches out over processes and brings the results together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


def share_out(batches: Sequence[T]) -> Sequence[T]:
    """Returns this process's batches: all of them, if it is alone."""
    state = PartialState()
    return batches[state.process_index :: state.num_processes]


def share_in_step(batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Yields this process's batches where every pass over one is everybody's: all processes run equally many.

    One that has fewer batches runs the last one once more, and drops what comes of it: the second value is False.
    """
    share = share_out(batches)
    yield from ((batch, True) for batch in share)
    if len(share) < -(-len(batches) // PartialState().num_processes):
        yield batches[-1], False


def gather_shares(finished: Mapping[int, T], n_places: int | None) -> dict[int, T]:
    """Returns what all processes finished, by place and in that order.

    Args:
        n_places: how many places were shared out; None: after an interruption, some may be missing.

    Raises:
        RuntimeError: a place was left out, or computed twice: the processes did not plan the same batches.
    """
    results = list(finished.items())
    if PartialState().num_processes > 1:
        results = gather_object(results)
    results.sort(key=lambda result: result[0])
    if n_places is not None and [place for place, _ in results] != list(range(n_places)):
        raise RuntimeError(f"expected each of {n_places} pairs computed exactly once, got {len(results)} results")
    return dict(results)
