"""Where each completion's tokens lie: by hand for two small pairs."""

from __future__ import annotations

import pytest
import torch

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.ghost import layout as layout_module
from dpotool.gradients.ghost.layout import lay_out_batch, lay_out_completions

PAIRS = [TokenizedPair(0, (1, 1), (5, 5, 2), (6, 2)), TokenizedPair(1, (1,), (7, 2), (8, 8, 8, 2))]
"""Rows of 5, 4, 3 and 5 tokens."""


def tokens(layout, values: torch.Tensor) -> list[tuple[list, list]]:
    return [(chosen[..., 0].tolist(), rejected[..., 0].tolist()) for _, chosen, rejected in layout.split(values)]


def number_tokens() -> torch.Tensor:
    """Token t of row r is numbered 10 r + t."""
    return (10 * torch.arange(4)[:, None] + torch.arange(5))[..., None]


def test_spans_leave_out_padding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layout_module, "ALIGNMENT", 1)
    layout = lay_out_batch(PAIRS, 5, together=False)
    expected = [([[0, 1, 2, 3, 4]], [[10, 11, 12, 13]]), ([[20, 21, 22]], [[30, 31, 32, 33, 34]])]
    assert tokens(layout, number_tokens()) == expected
    assert tokens(layout, number_tokens().reshape(20, 1)) == expected, "also where a layer was given flat tokens"
    assert [span.n_shared for span in layout.spans] == [2, 1]
    assert [span.pairs for span in layout.spans] == [slice(0, 1), slice(1, 2)]


def test_spans_are_rounded_up_to_sizes_that_multiply_fast(monkeypatch: pytest.MonkeyPatch):
    """Up to a multiple of 2 here, but never beyond the row; shared prompts are rounded down."""
    monkeypatch.setattr(layout_module, "ALIGNMENT", 2)
    layout = lay_out_batch(PAIRS, 5, together=False)
    expected = [([[0, 1, 2, 3, 4]], [[10, 11, 12, 13]]), ([[20, 21, 22, 23]], [[30, 31, 32, 33, 34]])]
    assert tokens(layout, number_tokens()) == expected
    assert [span.n_shared for span in layout.spans] == [2, 0]


def test_all_pairs_together_keep_their_padding_and_share_the_shortest_prompt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layout_module, "ALIGNMENT", 1)
    layout = lay_out_batch(PAIRS, 5, together=True)
    ((chosen, rejected),) = tokens(layout, number_tokens())
    assert chosen == [[0, 1, 2, 3, 4], [20, 21, 22, 23, 24]]
    assert rejected == [[10, 11, 12, 13, 14], [30, 31, 32, 33, 34]]
    assert [span.n_shared for span in layout.spans] == [1]


def test_completion_tokens_follow_each_other():
    """The second pair's six tokens, as the output layer gets them: two of the chosen, four of the rejected."""
    layout = lay_out_completions(PAIRS[1:], 1, torch.tensor([2, 2, 3, 3, 3, 3]))
    values = torch.arange(1.0, 7.0)[:, None]
    assert tokens(layout, values[None]) == [([[1, 2]], [[3, 4, 5, 6]])]
    assert [span.pairs for span in layout.spans] == [slice(1, 2)] == [layout.pairs]
    assert layout.sum_completions(values, 1).tolist() == [[3], [18]]


def test_sums_by_row_keep_only_the_parameters_axes():
    """2 pairs, 4 rows of 2 tokens, 3 heads of 1 element each: rows sum over tokens and heads."""
    layout = lay_out_batch(PAIRS, 2, together=False)
    values = torch.ones(4, 2, 3, 1) * torch.arange(4)[:, None, None, None]
    assert layout.sum_completions(values, 1).tolist() == [[0], [6], [12], [18]]
    assert layout.sum_completions(values, 3).tolist() == [[0, 0, 0], [2, 2, 2], [4, 4, 4], [6, 6, 6]]
