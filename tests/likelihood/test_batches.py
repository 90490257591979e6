"""Every row once, within the budget, longest first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpotool.errors import DpotoolError
from dpotool.likelihood.budget import plan_batches


def test_worked_by_hand() -> None:
    """Lengths 5, 9, 4, 5, 1 and a budget of 10: 9 alone (2 x 9 > 10); 5 + 5 fill it; then 4 and 1 (2 x 4 = 8)."""
    assert plan_batches([5, 9, 4, 5, 1], 10) == [[1], [0, 3], [2, 4]]


def test_a_row_beyond_the_budget_is_a_batch_of_its_own() -> None:
    assert plan_batches([3, 50, 3], 10) == [[1], [0, 2]]


def test_no_rows_no_batches() -> None:
    assert plan_batches([], 10) == []


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100))
def test_each_index_once_within_budget_longest_first(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    flat = [index for batch in batches for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 100))
def test_no_batch_has_room_for_the_next_row(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(DpotoolError, match=r"--batch-tokens is out of range; expected at least 1, got 0"):
        plan_batches([1], 0)
