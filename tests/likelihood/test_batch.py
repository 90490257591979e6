"""Rows by hand: what lies where, who sees whom, which state predicts which token; every row once, within the budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood.batch import collate_shared, pack_rows
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


LONG = TokenizedPair(0, (1, 5, 6), (7, 8, 2), (9, 2))
SHORT = TokenizedPair(1, (1,), (4, 2), (3,))


def test_a_row_by_hand() -> None:
    batch = collate_shared([LONG])
    assert batch.input_ids.tolist() == [[1, 5, 6, 7, 8, 2, 9, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4]]
    assert batch.block_ids.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]
    assert batch.target_ids.tolist() == [7, 8, 2, 9, 2]
    assert batch.target_positions.tolist() == [2, 3, 4, 2, 6], "both first tokens come from the prompt's last state"
    assert batch.target_completions.tolist() == [0, 0, 0, 1, 1]
    assert batch.n_completions == 2


def test_who_sees_whom() -> None:
    """Rows see columns: the prompt itself, a completion the prompt and itself, never the future."""
    expected = """
    x.......
    xx......
    xxx.....
    xxxx....
    xxxxx...
    xxxxxx..
    xxx...x.
    xxx...xx"""
    (mask,) = collate_shared([LONG]).build_mask(torch.float64)[:, 0]
    assert mask.unique().tolist() == [torch.finfo(torch.float64).min, 0.0]
    assert ["".join("x" if seen else "." for seen in row) for row in mask == 0] == expected.split()


def test_short_pairs_lie_in_one_row_and_do_not_see_each_other() -> None:
    batch = collate_shared([SHORT, LONG, SHORT])
    assert batch.block_ids.tolist() == [[3, 3, 3, 4, 4, 4, 5, 5], [0, 1, 1, 2, 6, 7, 7, 8]]
    assert batch.position_ids[1].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert batch.target_rows.tolist() == [1] * 3 + [0] * 5 + [1] * 3, "in the order of the pairs, not of the rows"
    assert batch.target_completions.tolist() == [0, 0, 1, 2, 2, 2, 3, 3, 4, 4, 5]
    assert (batch.build_mask(torch.float32)[1, 0, 4:, :4] < 0).all()


def test_padding_sees_something() -> None:
    batch = collate_shared([LONG, SHORT])
    mask = batch.build_mask(torch.float32)
    assert batch.block_ids[1].tolist() == [3, 4, 4, 5, -3, -3, -3, -3]
    assert (mask == 0).any(dim=-1).all(), "a token that sees nothing becomes NaN"
    assert (mask[1, 0, :4, 4:] < 0).all() and (mask[1, 0, 4:, :4] < 0).all()


def test_chosen_alone() -> None:
    batch = collate_shared([LONG], with_rejected=False)
    assert batch.input_ids.tolist() == [[1, 5, 6, 7, 8, 2]]
    assert (batch.n_completions, batch.target_ids.tolist()) == (1, [7, 8, 2])


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        collate_shared([TokenizedPair(0, (), (5, 2), (6, 2))])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_rows_hold_each_piece_once_and_are_never_longer_than_the_longest(lengths: list[int]) -> None:
    rows = pack_rows(lengths)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= max(lengths) for row in rows)
