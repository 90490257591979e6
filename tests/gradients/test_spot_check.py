"""The check of the fast engine by autograd finds what it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_pairs
from model_families import build_family

from dpotool.gradients.engine import GradientEngine
from dpotool.gradients.products import PairProducts
from dpotool.gradients.verification import check_products


def compute(engine: GradientEngine, n: int) -> tuple[list, list[PairProducts]]:
    pairs = make_pairs(n)
    (products,) = engine.iter_products(pairs, batch_tokens=10_000)
    return pairs, [products[place] for place in range(n)]


@pytest.mark.parametrize("parameters", ["all", "last-1"])
def test_the_engine_agrees_on_the_parameters_that_were_selected(parameters: str):
    model = build_family("llama", dtype=torch.float32)
    engine = GradientEngine(model, parameters)
    check = check_products(model, *compute(engine, 5), engine.selection, 3)
    assert check["n"] == 3 and check["passed"] and 0 < check["largest_error"] < 1e-5


@pytest.mark.parametrize("name", ["grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm"])
@pytest.mark.parametrize("place", [0, 4])
def test_a_wrong_number_in_a_checked_pair_fails(name: str, place: int):
    model = build_family("llama", dtype=torch.float32)
    engine = GradientEngine(model)
    pairs, products = compute(engine, 5)
    products[place] = replace(products[place], **{name: 1.01 * getattr(products[place], name) + 1.0})
    assert not check_products(model, pairs, products, engine.selection, 2)["passed"]


def test_no_more_pairs_than_there_are():
    model = build_family("llama")
    engine = GradientEngine(model)
    assert check_products(model, *compute(engine, 3), engine.selection, 100)["n"] == 3
