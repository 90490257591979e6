"""Shares batches out over processes and brings the results together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

T = TypeVar("T")


def share_out(batches: Sequence[T]) -> Sequence[T]:
    """Returns this process's batches: all of them, if it is alone."""
    state = PartialState()
    return batches[state.process_index :: state.num_processes]


def gather_shares(results: list[T]) -> list[T]:
    """Returns the results of all processes."""
    return gather_object(results) if PartialState().num_processes > 1 else results
