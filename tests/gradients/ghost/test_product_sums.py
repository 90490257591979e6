"""Gradients of a table of vectors, by hand: alone, with a padding row, and tied to an output layer."""

from __future__ import annotations

import pytest
import torch

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.ghost import layout
from dpotool.gradients.ghost.layout import lay_out_batch
from dpotool.gradients.ghost.product_sums import TableRows, sum_by_id


def test_vectors_are_summed_by_id():
    """Ids 7, 3, 7: row 3 gets (2, 0), row 7 gets (1, 1) + (0, 4); row 9, of the other completion, nothing."""
    distinct, ids = torch.tensor([3, 7, 9]), torch.tensor([7, 3, 7])
    vectors = torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 4.0]])
    assert sum_by_id(distinct, ids, vectors, None).tolist() == [[2, 0], [1, 5], [0, 0]]
    assert sum_by_id(distinct, ids, vectors, 7).tolist() == [[2, 0], [0, 0], [0, 0]]


def test_distinct_ids_of_each_pair(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layout, "ALIGNMENT", 1)  # no padding in the spans
    pairs = [TokenizedPair(0, (1,), (5, 2), (5, 6, 2)), TokenizedPair(1, (9,), (9, 2), (4, 2))]
    table = TableRows()
    ids = torch.tensor([[1, 5, 2, 0], [1, 5, 6, 2], [9, 9, 2, 0], [9, 4, 2, 0]])
    table.set_ids(lay_out_batch(pairs, 4, together=False), ids)
    assert {place: found.tolist() for place, found in table.distinct_ids.items()} == {0: [1, 2, 5, 6], 1: [2, 4, 9]}


def test_tied_table_by_hand():
    """One feature, rows 3 and 7 in the pair. E_w = (2, 5), E_l = (1, 0); H_w = (1, 1), H_l = (0, 2) in these rows.

    The embedding adds to <H_w, H_l>: <E_w, E_l> + <E_w, H_l> + <H_w, E_l> = 2 + 10 + 1 = 13;
    to ‖H_w‖²: 29 + 2 (2 + 5) = 43; to ‖H_l‖²: 1 + 0 = 1.
    Whole: H + E = (3, 6) and (1, 2): product 15 = 2 + 13, squares 45 = 2 + 43 and 5 = 4 + 1.
    """
    table = TableRows()
    table.of_output[0] = torch.tensor([[[1.0], [1.0]], [[0.0], [2.0]]])
    rows = torch.tensor([[[2.0], [5.0]], [[1.0], [0.0]]])
    assert table.compute_products(0, rows).tolist() == [[13, 43, 1]]
    assert table.compute_products(0, rows).tolist() == [[2, 29, 1]], "used once"
