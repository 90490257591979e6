"""Real steps: what they measure agrees with the first order to second order, and the weights come back bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_family

from dpotool.gradients import verification
from dpotool.gradients.engine import GradientEngine
from dpotool.gradients.products import PairProducts
from dpotool.gradients.real_steps import StepLab, in_float64, put_back
from dpotool.gradients.verification import check_products, verify_gaps
from dpotool.likelihood.pair_logps import compute_pair_logps

AWAY = np.array([0.9, -0.4, 1.5, 0.2])


def make_lab(family: str, *, is_away: bool) -> StepLab:
    model, pairs = build_family(family, dtype=torch.float32), make_pairs(4)
    with in_float64(model):
        logps = compute_pair_logps(model, pairs)
    away = AWAY if is_away else 0.0
    reference = (logps.chosen - away, logps.rejected + away)
    return StepLab(model, dict(model.named_parameters()), pairs, reference, beta=0.3, batch_tokens=60)


@pytest.mark.parametrize(("family", "is_away"), [("llama-tied-biased", True), ("gemma2", False), ("gpt2", True)])
def test_only_second_order_is_left_over(family: str, is_away: bool):
    lab = make_lab(family, is_away=is_away)
    with in_float64(lab.model):
        verified = verify_gaps(lab, [0.6], gamma=1.3)
    assert set(verified) == {"sgd", "adamw"}
    for by_shift in verified.values():
        for gap in by_shift["0.6"].values():
            assert 1.9 <= gap["slope"] <= 2.1
            assert gap["ladder"][-1]["measured"] == pytest.approx(gap["predicted"], rel=0.05)


def test_experts_that_run_in_grouped_kernels_are_stepped_too():
    """These kernels know no float64; what the model uses otherwise is set back."""
    lab = make_lab("mixtral", is_away=True)
    lab.model.config._experts_implementation = "grouped_mm"
    with in_float64(lab.model):
        verified = verify_gaps(lab, [0.6], gamma=1.3)
    assert 1.9 <= verified["sgd"]["0.6"]["g1"]["slope"] <= 2.1
    assert lab.model.config._experts_implementation == "grouped_mm"


def test_a_wrong_prediction_leaves_a_first_order(monkeypatch: pytest.MonkeyPatch):
    """The paper's weight, one for both losses, is wrong away from the reference."""
    lab = make_lab("llama", is_away=True)
    monkeypatch.setattr(
        verification, "compute_gap_weights", lambda a, b, f, beta: (np.zeros_like(a), (1 - f) * beta / 2 + 0 * a)
    )
    with in_float64(lab.model):
        verified = verify_gaps(lab, [0.6], gamma=1.3)
    assert 0.9 <= verified["sgd"]["0.6"]["g1"]["slope"] <= 1.1


def test_weights_gradients_and_mode_come_back_bit_for_bit():
    lab = make_lab("llama", is_away=False)
    lab.model.train()
    first = next(iter(lab.parameters.values()))
    first.grad = torch.full_like(first, 3.0)
    before = {name: parameter.detach().clone() for name, parameter in lab.model.named_parameters()}
    first_grad = first.grad.clone()
    with in_float64(lab.model):
        verify_gaps(lab, [0.6], gamma=1.3)
    assert lab.model.training
    for name, parameter in lab.model.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, before[name]), name
        assert (parameter.grad is None) == (parameter is not first)
    assert torch.equal(first.grad, first_grad)


def test_weights_come_back_after_a_failure_too():
    lab = make_lab("llama", is_away=False)
    before = {name: parameter.detach().clone() for name, parameter in lab.parameters.items()}

    def step_and_stop() -> None:
        with in_float64(lab.model), put_back(lab.parameters):
            lab.step("sgd", lab.compute_loss_gradient(1.0), 0.1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step_and_stop()
    for name, parameter in lab.parameters.items():
        assert torch.equal(parameter, before[name])


def test_only_the_selected_parameters_step():
    lab = make_lab("llama", is_away=False)
    name = "model.layers.1.mlp.up_proj.weight"
    few = StepLab(lab.model, {name: lab.parameters[name]}, lab.pairs, lab.reference_logps, lab.beta, lab.batch_tokens)
    with in_float64(lab.model):
        update = few.find_update("adamw", few.compute_loss_gradient(0.6), 1e-3)
        verified = verify_gaps(few, [0.6], gamma=1.0)
    assert list(update) == [name] and update[name].abs().max().item() == pytest.approx(1e-3, rel=1e-3)
    assert 1.9 <= verified["adamw"]["0.6"]["g1"]["slope"] <= 2.1


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
