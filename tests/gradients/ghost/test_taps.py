"""What taps hand over, in which precision, and how they tell one input from another."""

from __future__ import annotations

import weakref

import pytest
import torch
from conftest import make_pairs
from model_families import build_family
from torch import Tensor
from torch.nn import functional as F

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.engine import GradientEngine
from dpotool.gradients.ghost import taps as taps_module
from dpotool.gradients.ghost.audit import Claims
from dpotool.gradients.ghost.layout import lay_out_batch
from dpotool.gradients.ghost.outer import SharedInput
from dpotool.gradients.ghost.taps import Taps
from dpotool.gradients.ghost.uses import Form

PAIRS = [TokenizedPair(0, (1,), (5, 6, 2), (7, 8, 2))]


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.dense: list[Tensor] = []
        self.names: list[str] = []
        self.shared: list[SharedInput] = []

    def add_dense(self, part, layout, gradient) -> None:
        self.dense.append(gradient)

    def add_outer(self, part, layout, shared, operand, output_grad) -> None:
        self.names.append(part.name)
        self.shared.append(shared)

    def start_lookup(self, part, ids) -> None: ...

    def add_lookup(self, part, layout, ids, output_grad, padding_idx) -> None: ...


def tap(parameters: dict[str, Tensor], form: Form) -> tuple[Taps, Kept]:
    kept = Kept()
    taps = Taps(parameters, Claims(dict.fromkeys(parameters, (form,)), ()), kept)
    taps.layout = lay_out_batch(PAIRS, 4, together=False)
    return taps, kept


def test_products_of_bfloat16_values_are_formed_and_summed_in_float32():
    """1 + 2^-7 squared is 1 + 2^-6 + 2^-14, which bfloat16 cannot hold; 4 tokens: 4 + 2^-4 + 2^-12."""
    weight = torch.ones(1, dtype=torch.bfloat16)
    values = torch.full((2, 4, 1), 1 + 2**-7, dtype=torch.bfloat16)
    taps, kept = tap({"weight": weight}, Form.SCALE)
    with taps:
        output = weight * values
    output.backward(values)
    (gradient,) = kept.dense
    assert gradient.dtype == torch.float32
    assert gradient.tolist() == [[4 + 2**-4 + 2**-12]] * 2


def test_outputs_may_be_changed_in_place():
    weight, values = torch.ones(3, 2), torch.ones(2, 4, 2)
    taps, kept = tap({"weight": weight}, Form.OUTER)
    with taps:
        output = F.linear(values, weight)
        output.mul_(2).add_(1)
    assert output.tolist() == torch.full((2, 4, 3), 5.0).tolist()
    output.sum().backward()
    assert len(kept.shared) == 1


def test_inputs_are_shared_by_identity_alone():
    """An equal tensor is another input, and so is a later one that was given the address of one that is gone."""
    weights = {name: torch.ones(3, 2) for name in "qkvo"}
    taps, kept = tap(weights, Form.OUTER)
    x = torch.ones(2, 4, 2)
    equal = x.clone()
    with taps:
        total = F.linear(x, weights["q"]) + F.linear(x, weights["k"]) + F.linear(equal, weights["v"])
        gone, later = torch.zeros(1), torch.ones(2, 4, 2)
        taps._inputs[id(later)] = (weakref.ref(gone), SharedInput(2))
        del gone
        total = total + F.linear(later, weights["o"])
    total.sum().backward()
    by_layer = dict(zip(kept.names, kept.shared, strict=True))
    assert by_layer["q"] is by_layer["k"]
    assert len({id(by_layer[name]) for name in "qvo"}) == 3


def test_every_gram_matrix_is_dropped_once_its_last_layer_was_reached(monkeypatch: pytest.MonkeyPatch):
    """Also where a checkpointed layer multiplies its very input, which comes again in the recomputation (OLMo-2)."""
    made: list[SharedInput] = []

    def note(n_features: int) -> SharedInput:
        made.append(SharedInput(n_features))
        return made[-1]

    monkeypatch.setattr(taps_module, "SharedInput", note)
    monkeypatch.setattr(SharedInput, "is_gram_cheaper", lambda *_: True)
    model = build_family("olmo2")
    model.gradient_checkpointing_enable()
    list(GradientEngine(model).iter_products(make_pairs(2)))
    assert made and not any(shared.tiles for shared in made)
