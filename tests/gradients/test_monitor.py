"""The monitor's products, caught from a training step's own backward pass, against the engine's at the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import make_pairs
from model_families import build_family
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.engine import compute_fast_products
from dpotool.gradients.ghost import outer, passes, product_sums
from dpotool.gradients.ghost.layout import PairSpan
from dpotool.gradients.monitor import TheoryMonitor
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood import completions
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.losses.registry import get_loss
from dpotool.losses.spec import PairLogps
from dpotool.models.determinism import disable_dropout
from dpotool.theory.theorem import classify_entanglement, compute_u, compute_v

BETA = 0.5
REFERENCE = torch.tensor([-30.0, -25.0, -40.0, -20.0, -35.0], dtype=torch.float64)


def step_back(model: nn.Module, pairs: list[TokenizedPair], monitor: TheoryMonitor | None, loss: str) -> Tensor:
    """One backward pass of the loss, as in training; returns the row log-probabilities."""
    batch = collate_pairs(pairs)
    logps = compute_completion_logps(model, batch) if monitor is None else monitor.compute_logps(model, batch)
    reference = REFERENCE[: len(pairs)]
    spec = get_loss(loss)
    pair_logps = PairLogps(logps[0::2], logps[1::2], reference, reference - 3)
    (spec.compute(pair_logps, spec.resolve_options(beta=BETA)).sum() / 7).backward()
    if monitor is not None:
        monitor.finish(reference, reference - 3)
    return logps.detach()


@pytest.mark.parametrize("family", ["llama", "llama-tied-biased", "gpt2", "gemma2", "falcon", "qwen3", "opt"])
@pytest.mark.parametrize("in_portions", [True, False])
def test_equals_the_engine_and_leaves_the_step_as_it_is(
    family: str, in_portions: bool, monkeypatch: pytest.MonkeyPatch
):
    if in_portions:  # the output layer in portions, computed again on the way back
        monkeypatch.setattr(completions, "CHUNK_ELEMENTS", 20 * 97)
    model, pairs = build_family(family), make_pairs(5)
    with EverythingInFloat64():
        expected, _ = compute_fast_products(model, pairs)
        monitor = TheoryMonitor(model)
        disable_dropout(model.train())
        logps = step_back(model, pairs, monitor, "dpo")
        watched = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        torch.testing.assert_close(step_back(model, pairs, None, "dpo"), logps)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(watched[name], parameter.grad, msg=name)
    found = monitor.pop(Accelerator(cpu=True))
    a = (logps[0::2] - REFERENCE).numpy()
    b = (logps[1::2] - REFERENCE + 3).numpy()
    inner, chosen, rejected = (
        expected.grad_inner_product,
        expected.chosen_grad_sq_norm,
        expected.rejected_grad_sq_norm,
    )
    assert found["theory/grad_inner_product"] == pytest.approx(inner.mean(), rel=1e-9)
    assert found["theory/chosen_grad_norm"] == pytest.approx(np.sqrt(chosen).mean(), rel=1e-9)
    assert found["theory/rejected_grad_norm"] == pytest.approx(np.sqrt(rejected).mean(), rel=1e-9)
    assert found["theory/u"] == pytest.approx(compute_u(inner, a, b).mean(), rel=1e-9)
    assert found["theory/v"] == pytest.approx(compute_v(inner, rejected).mean(), rel=1e-9)
    cases = classify_entanglement(inner, chosen, rejected)
    for case in set(cases):
        assert found[f"theory/{case}"] == pytest.approx((cases == case).mean())
    assert found["theory/n_saturated"] == 0


def step_at_margins(
    model: nn.Module, pairs: list[TokenizedPair], margins: list[float], *, beta: float
) -> dict[str, float]:
    """One DPO step back with reference values that give the pairs these margins in nats; returns what is logged."""
    monitor = TheoryMonitor(model)
    logps = monitor.compute_logps(model, collate_pairs(pairs))
    chosen, rejected = logps.detach()[0::2], logps.detach()[1::2]
    reference = chosen - torch.tensor(margins, dtype=chosen.dtype), rejected
    spec = get_loss("dpo")
    spec.compute(PairLogps(logps[0::2], logps[1::2], *reference), spec.resolve_options(beta=beta)).sum().backward()
    monitor.finish(*reference)
    return monitor.pop(Accelerator(cpu=True))


def test_saturated_pairs_are_left_out_and_counted():
    """beta .1 s(-.1 m) is 3e-21 at a margin m of 450 nats, whose square float32 cannot hold, and 5e-13 at 260."""
    model, pairs = build_family("llama", dtype=torch.float32), make_pairs(5)
    expected, _ = compute_fast_products(model, pairs)
    found = step_at_margins(model, pairs, [0.0, 450.0, 260.0, 450.0, -5.0], beta=0.1)
    assert found["theory/n_saturated"] == 2
    kept = [0, 2, 4]
    assert found["theory/grad_inner_product"] == pytest.approx(expected.grad_inner_product[kept].mean(), rel=1e-5)


def test_a_pair_alone_in_its_micro_batch_may_be_saturated():
    model, pairs = build_family("llama", dtype=torch.float32), make_pairs(1)
    assert step_at_margins(model, pairs, [450.0], beta=0.1) == {"theory/n_saturated": 1.0}


def test_next_to_nothing_is_enough_for_a_float32_step():
    """A derivative of .1 s(-32.5) = 7.7e-16, just above where digits are lost: each norm has five digits and more."""
    model, pairs = build_family("llama", dtype=torch.float32), make_pairs(1)
    expected, _ = compute_fast_products(model, pairs)
    found = step_at_margins(model, pairs, [325.0], beta=0.1)
    assert found["theory/n_saturated"] == 0
    assert found["theory/chosen_grad_norm"] == pytest.approx(np.sqrt(expected.chosen_grad_sq_norm[0]), rel=1e-5)
    assert found["theory/rejected_grad_norm"] == pytest.approx(np.sqrt(expected.rejected_grad_sq_norm[0]), rel=1e-5)


def test_float64_carries_what_float32_cannot():
    model, pairs = build_family("llama"), make_pairs(1)
    with EverythingInFloat64():
        expected, _ = compute_fast_products(model, pairs)
        found = step_at_margins(model, pairs, [450.0], beta=0.1)
    assert found["theory/grad_inner_product"] == pytest.approx(expected.grad_inner_product[0], rel=1e-9)


LONG_PROMPTS = [
    TokenizedPair(pair.pair_id, (1, *(3 + (5 * pair.pair_id + 7 * place) % 94 for place in range(39))), *completions_of)
    for pair in make_pairs(3)
    for completions_of in [(pair.chosen_ids, pair.rejected_ids)]
]
"""Prompts of 40 tokens, of which 32 can be shared: two spans of `ALIGNMENT`."""


def take_gram_matrices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Brings every layer to the Gram matrices of single pairs; returns where their numbers of shared tokens go."""
    n_shared: list[int] = []
    compute = product_sums.compute_gram_products

    def spy(shared: object, span: PairSpan, *factors: object) -> Tensor:
        n_shared.append(span.n_shared)
        return compute(shared, span, *factors)  # type: ignore[arg-type]

    monkeypatch.setattr(product_sums, "compute_gram_products", spy)
    monkeypatch.setattr(outer.SharedInput, "is_joint_gram_cheaper", lambda *_: False)
    monkeypatch.setattr(outer.SharedInput, "is_gram_cheaper", lambda *_: True)
    return n_shared


def differentiate_rows(model: nn.Module, pairs: list[TokenizedPair]) -> np.ndarray:
    """<W,L>, ‖W‖², ‖L‖² of each pair by autograd, row by row, from one forward pass over the same batch."""
    logps = compute_completion_logps(model, collate_pairs(pairs))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(one, parameters, retain_graph=True)]) for one in logps
    ]
    return np.array(
        [[(W @ L).item(), (W @ W).item(), (L @ L).item()] for W, L in zip(rows[0::2], rows[1::2], strict=True)]
    )


@pytest.mark.parametrize("dropout", [0.3, 0.0])
def test_long_prompts_are_shared_unless_dropout_sets_the_rows_apart(dropout: float, monkeypatch: pytest.MonkeyPatch):
    """The same seed gives the same masks to the watched step and to autograd."""
    n_shared = take_gram_matrices(monkeypatch)
    model = add_adapter(build_family("llama"), dropout=dropout).train()
    monitor = TheoryMonitor(model)
    torch.manual_seed(5)
    monitor.compute_logps(model, collate_pairs(LONG_PROMPTS)).sum().backward()
    found = monitor.read_products()
    torch.manual_seed(5)
    np.testing.assert_allclose(found, differentiate_rows(model, LONG_PROMPTS), rtol=1e-9)
    assert set(n_shared) == ({0} if dropout else {32})


def test_dropout_that_is_switched_off_lets_prompts_be_shared(monkeypatch: pytest.MonkeyPatch):
    n_shared = take_gram_matrices(monkeypatch)
    model = add_adapter(build_family("llama"), dropout=0.3).eval()
    monitor = TheoryMonitor(model)
    monitor.compute_logps(model, collate_pairs(LONG_PROMPTS)).sum().backward()
    np.testing.assert_allclose(monitor.read_products(), differentiate_rows(model, LONG_PROMPTS), rtol=1e-9)
    assert set(n_shared) == {32}


def test_an_output_layer_that_is_computed_again_drops_the_same(monkeypatch: pytest.MonkeyPatch):
    """With an adapter on the output layer: the step's own gradients are those without checkpointing."""
    monkeypatch.setattr(completions, "CHUNK_ELEMENTS", 20 * 97)
    model = add_adapter(build_family("llama"), dropout=0.3, targets=("lm_head",)).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def differentiate() -> list[Tensor]:
        torch.manual_seed(5)
        logps = TheoryMonitor(model).compute_logps(model, collate_pairs(make_pairs(5)))
        return list(torch.autograd.grad(logps.sum(), trained))

    found = differentiate()
    monkeypatch.setattr(passes, "checkpoint", lambda compute, *arguments, **_: compute(*arguments))
    torch.testing.assert_close(found, differentiate())


def add_adapter(
    model: nn.Module, *, dropout: float, targets: Sequence[str] = ("q_proj", "v_proj", "up_proj")
) -> nn.Module:
    config = LoraConfig(r=3, lora_alpha=6, lora_dropout=dropout, target_modules=list(targets), task_type="CAUSAL_LM")
    model = get_peft_model(model, config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)  # LoRA starts with B = 0, where A has no gradient
    return model


def test_micro_batches_add_up_and_a_log_starts_anew():
    model, pairs = build_family("llama"), make_pairs(5)
    expected, _ = compute_fast_products(model, pairs)
    monitor, accelerator = TheoryMonitor(model), Accelerator(cpu=True)
    step_back(model, pairs[:2], monitor, "dpo")
    step_back(model, pairs[2:], monitor, "dpo")
    found = monitor.pop(accelerator)
    assert found["theory/grad_inner_product"] == pytest.approx(expected.grad_inner_product.mean(), rel=1e-6)
    assert monitor.pop(accelerator) == {"theory/n_saturated": 0.0}


def test_parameters_without_a_rule_are_named():
    monitor = TheoryMonitor(build_family("mixtral"))
    assert monitor.left_out and all(".experts." in name for name in monitor.left_out)


def test_evaluations_are_not_watched():
    model = build_family("llama")
    with torch.no_grad(), pytest.raises(RuntimeError, match="training steps"):
        TheoryMonitor(model).compute_logps(model, collate_pairs(make_pairs(1)))
