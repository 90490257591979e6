"""Every recognised operation gives the gradient its form promises, and look-alikes are not recognised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from dpotool.gradients.ghost.uses import Form, ParameterUses, Use

TOKENS, IN, OUT = 5, 4, 3
Operation = Callable[[Tensor, Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Notes(ParameterUses):
    def __init__(self, parameter: Tensor) -> None:
        super().__init__({"P": parameter})
        self.found: list[tuple[Use, Tensor]] = []

    def on_use(self, use: Use, compute: Callable[[], Tensor]) -> Tensor:
        output = compute()
        self.found.append((use, output))
        return output


def watch(operation: Operation, parameter: Tensor, x: Tensor) -> tuple[list[tuple[Use, Tensor]], Tensor]:
    with Notes(parameter) as notes:
        result = operation(parameter, x)
    return notes.found, result


def compute_by_form(use: Use, output_grad: Tensor) -> Tensor:
    """The table at the top of `uses`, for one row."""
    (part,) = use.parts
    operand = use.operand if use.prepare is None or use.operand is None else use.prepare(use.operand)
    if part.form is Form.SHIFT:
        return output_grad.reshape(-1, *part.tensor.shape).sum(0)
    assert operand is not None
    if part.form is Form.SCALE:
        return (output_grad * operand).reshape(-1, *part.tensor.shape).sum(0)
    if part.form is Form.LOOKUP:
        has_gradient = torch.tensor([index != use.padding_idx for index in operand.tolist()])
        return torch.zeros_like(part.tensor).index_add(0, operand, output_grad * has_gradient[:, None])
    gradient = output_grad.reshape(-1, output_grad.shape[-1]).T @ operand.reshape(-1, operand.shape[-1])
    return gradient.T if part.is_transposed else gradient


IDS = torch.tensor([1, 3, 1, 0, 2])
RECOGNISED: dict[str, tuple[Operation, tuple[int, ...], Form]] = {
    "linear": (lambda p, x: F.linear(x, p), (OUT, IN), Form.OUTER),
    "linear by keyword": (lambda p, x: F.linear(input=x, weight=p, bias=None), (OUT, IN), Form.OUTER),
    "bias of linear": (lambda p, x: F.linear(x, draw(OUT, IN), p), (OUT,), Form.SHIFT),
    "times transpose (Falcon)": (lambda p, x: x @ p.T, (OUT, IN), Form.OUTER),
    "times t()": (lambda p, x: torch.matmul(x, p.t()), (OUT, IN), Form.OUTER),
    "times transpose(-1, -2)": (lambda p, x: x @ p.transpose(-1, -2), (OUT, IN), Form.OUTER),
    "times matrix": (lambda p, x: x @ p, (IN, OUT), Form.OUTER),
    "linear with transpose": (lambda p, x: F.linear(x, p.T), (IN, OUT), Form.OUTER),
    "twice transposed": (lambda p, x: F.linear(x, p.T.mT), (OUT, IN), Form.OUTER),
    "addmm (Conv1D)": (lambda p, x: torch.addmm(draw(OUT), x, p), (IN, OUT), Form.OUTER),
    "bias of addmm": (lambda p, x: torch.addmm(p, x, draw(IN, OUT)), (OUT,), Form.SHIFT),
    "embedding": (lambda p, x: F.embedding(IDS, p), (4, IN), Form.LOOKUP),
    "embedding with padding": (lambda p, x: F.embedding(IDS, p, padding_idx=-3), (4, IN), Form.LOOKUP),
    "scaled embedding (Gemma)": (lambda p, x: F.embedding(IDS, p) * 3.0, (4, IN), Form.LOOKUP),
    "norm weight (Llama)": (lambda p, x: p * x.tanh(), (IN,), Form.SCALE),
    "norm weight, turned": (lambda p, x: torch.mul(x, p), (IN,), Form.SCALE),
    "norm weight of heads": (lambda p, x: x.view(TOKENS, 2, 2) * p, (2, 2), Form.SCALE),
    "1 + weight (Gemma)": (lambda p, x: x * (1.0 + p.float().double()), (IN,), Form.SCALE),
    "cast weight (Cohere)": (lambda p, x: p.to(torch.float32).to(torch.float64) * x, (IN,), Form.SCALE),
    "layer norm": (lambda p, x: F.layer_norm(x, (IN,), p, None, 1e-3), (IN,), Form.SCALE),
    "bias of layer norm": (lambda p, x: F.layer_norm(x, (IN,), None, p), (IN,), Form.SHIFT),
    "rms norm": (lambda p, x: F.rms_norm(x, (IN,), p), (IN,), Form.SCALE),
    "sum": (lambda p, x: x + p, (IN,), Form.SHIFT),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_the_form_is_the_gradient(name: str):
    operation, shape, form = RECOGNISED[name]
    parameter, x = draw(*shape, seed=1).requires_grad_(), draw(TOKENS, IN, seed=2)
    ((use, output),), result = watch(operation, parameter, x)
    assert [part.form for part in use.parts] == [form] and use.parts[0].name == "P"
    weights = draw(*result.shape, seed=3)
    expected, output_grad = torch.autograd.grad((result * weights).sum(), [parameter, output])
    torch.testing.assert_close(compute_by_form(use, output_grad), expected, rtol=1e-6, atol=1e-6)


OTHERS: dict[str, tuple[Operation, tuple[int, ...]]] = {
    "square": (lambda p, x: x * p**2, (IN,)),
    "product with a number": (lambda p, x: x * (2.0 * p), (IN,)),
    "sum with another tensor first": (lambda p, x: x * (p + torch.ones(IN, dtype=x.dtype)), (IN,)),
    "one number for all": (lambda p, x: x * p, (1,)),
    "a number a token": (lambda p, x: x * p, (TOKENS, 1)),
    "parameter as input": (lambda p, x: F.linear(p, x), (2, IN)),
    "scaled addmm": (lambda p, x: torch.addmm(draw(OUT), x, p, alpha=2.0), (IN, OUT)),
    "scaled sum": (lambda p, x: torch.add(x, p, alpha=2.0), (IN,)),
    "one expert of several": (lambda p, x: F.linear(x, p[1]), (2, OUT, IN)),
    "renormed embedding": (lambda p, x: F.embedding(IDS, p.detach(), max_norm=1.0), (4, IN)),
    "vector product": (lambda p, x: x @ p, (IN,)),
    "transposed scale": (lambda p, x: x[:, :, None] * p.T, (2, IN)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_look_alikes_are_left_alone(name: str):
    operation, shape = OTHERS[name]
    found, _ = watch(operation, draw(*shape, seed=1).requires_grad_(), draw(TOKENS, IN, seed=2))
    assert found == []


def test_modules_are_seen_through_their_operations():
    for module, forms in [
        (nn.Linear(IN, OUT), {"weight": Form.OUTER, "bias": Form.SHIFT}),
        (Conv1D(OUT, IN), {"weight": Form.OUTER, "bias": Form.SHIFT}),
        (nn.LayerNorm(IN), {"weight": Form.SCALE, "bias": Form.SHIFT}),
        (nn.RMSNorm(IN), {"weight": Form.SCALE}),
    ]:
        for name, parameter in module.named_parameters():
            ((use, _),), _ = watch(lambda _, x, module=module: module(x), parameter, torch.ones(TOKENS, IN))
            assert [part.form for part in use.parts] == [forms[name]]


def test_an_alias_is_forgotten_with_its_tensor():
    """An id may be given to another tensor once the alias is gone; a weak reference tells them apart."""
    parameter = draw(IN, seed=1)
    with Notes(parameter) as notes:
        alias = parameter.to(torch.float32)
        assert notes.is_watched(alias)
        address = id(alias)
        del alias
        others = [torch.ones(IN) for _ in range(50)]
        assert not any(notes.is_watched(other) for other in others)
        assert notes.is_watched(parameter)
    assert address
