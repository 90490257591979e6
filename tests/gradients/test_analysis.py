"""The theory table holds the promised columns, each computed from the pair it stands beside."""

from __future__ import annotations

import numpy as np
import pytest

from dpotool.gradients.analysis import build_theory_frame
from dpotool.gradients.products import GradientProducts, compute_gradient_products
from dpotool.runs.schemas import THEORY_SCHEMA, is_optional


def columns(*rows: tuple[float, ...]) -> GradientProducts:
    """Products from rows (pair_id, <W,L>, ‖W‖², ‖L‖², chosen logps, rejected logps)."""
    array = np.array(rows)
    pair_id, product, chosen, rejected, chosen_logps, rejected_logps = array.T
    return GradientProducts(pair_id.astype(int), product, chosen, rejected, chosen_logps, rejected_logps)


def test_a_table_by_hand():
    """Row 3: W = (1, 1), L = (3, 1), a = -9 - -10 = 1, b = -19 - -20 = 1; gamma 1, f 1: c = s(0) = 1/2.

    u = 4/2 = 2, v = 4 - 10 = -6, cosine 4 / sqrt(20), band [4/10, 2/4], and DPO lowers both.
    """
    frame = build_theory_frame(
        columns((3, 4, 2, 10, -9, -19)),
        reference_chosen_logps=np.array([-10.0]),
        reference_rejected_logps=np.array([-20.0]),
    )
    (row,) = frame.to_dict("records")
    assert row.pop("grad_cosine") == pytest.approx(4 / np.sqrt(20))
    assert row == {
        "pair_id": 3,
        "grad_inner_product": 4.0,
        "chosen_grad_sq_norm": 2.0,
        "rejected_grad_sq_norm": 10.0,
        "chosen_logratios": 1.0,
        "rejected_logratios": 1.0,
        "u": 2.0,
        "v": -6.0,
        "band_low": 0.4,
        "band_high": 0.5,
        "entanglement": "both_down",
    }


def test_columns_are_those_of_the_results_schema(build_llama, pairs):
    frame = build_theory_frame(compute_gradient_products(build_llama(), pairs))
    assert list(frame.columns) == [field.name for field in THEORY_SCHEMA if not is_optional(field)]
    assert frame["pair_id"].tolist() == [0, 10, 20, 30, 40, 50]
    assert not frame.isna().any().any()
    assert frame["entanglement"].tolist()[-1] == "unmoved"


def test_without_reference_values_the_model_is_its_own(build_llama, pairs):
    frame = build_theory_frame(compute_gradient_products(build_llama(), pairs), gamma=0.5)
    assert (frame["chosen_logratios"] == 0).all()
    np.testing.assert_allclose(frame["u"], 0.25 * frame["grad_inner_product"])


def test_gamma_reaches_the_weight():
    """a = 1.5, b = 1, gamma 2: c = 2 s(2 (1 - 1.5)) = 2 s(-1) = .5378828; u = 4 c = 2.1515314."""
    frame = build_theory_frame(
        columns((3, 4, 2, 10, -9, -19)),
        reference_chosen_logps=np.array([-10.5]),
        reference_rejected_logps=np.array([-20.0]),
        gamma=2.0,
    )
    assert frame["u"].tolist() == pytest.approx([2.1515314], abs=1e-7)


def test_reference_values_must_fit_the_pairs():
    one = columns((3, 4, 2, 10, -9, -19))
    with pytest.raises(ValueError, match="for both completions or for neither"):
        build_theory_frame(one, reference_chosen_logps=np.zeros(1))
    with pytest.raises(ValueError, match="expected reference values of 1 pair, got 2 and 1"):
        build_theory_frame(one, reference_chosen_logps=np.zeros(2), reference_rejected_logps=np.zeros(1))
