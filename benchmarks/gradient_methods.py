"""Ways of getting <W,L>, ‖W‖², ‖L‖² of a batch of pairs, to be timed side by side.

W and L are gradients of summed log-probabilities over all weights. Every function takes the model and the pairs and
returns <W,L>, ‖W‖², ‖L‖² as an array (pairs, 3); the plain training step has none to return.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.engine import GradientEngine
from dpotool.gradients.monitor import TheoryMonitor
from dpotool.likelihood.batch import CompletionBatch, collate_pairs
from dpotool.likelihood.completions import compute_completion_logps

Method = Callable[[nn.Module, Sequence[TokenizedPair]], np.ndarray | None]
_engines: dict[int, GradientEngine] = {}
_monitors: dict[int, TheoryMonitor] = {}


def _collate(model: nn.Module, pairs: Sequence[TokenizedPair]) -> CompletionBatch:
    return collate_pairs(pairs).to(next(model.parameters()).device)


def run_engine(model: nn.Module, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """dpotool: one batched pass over activations."""
    if id(model) not in _engines:
        _engines[id(model)] = GradientEngine(model)  # once per model, not per batch
    (products,) = _engines[id(model)].iter_products(pairs, batch_tokens=10**9)
    rows = [products[place] for place in range(len(pairs))]
    return np.array([[p.grad_inner_product, p.chosen_grad_sq_norm, p.rejected_grad_sq_norm] for p in rows])


def run_training_step(model: nn.Module, pairs: Sequence[TokenizedPair]) -> None:
    """(c) One forward and backward pass with weight gradients, as training does; the output layer in chunks."""
    chosen, rejected = compute_completion_logps(model, _collate(model, pairs)).view(-1, 2).unbind(1)
    (-F.logsigmoid(0.1 * (chosen - rejected))).mean().backward()
    model.zero_grad(set_to_none=True)


def run_monitored_step(model: nn.Module, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """dpotool's --monitor-theory: a training step whose own backward pass is watched."""
    if id(model) not in _monitors:
        _monitors[id(model)] = TheoryMonitor(model)
    monitor = _monitors[id(model)]
    logps = monitor.compute_logps(model, _collate(model, pairs))
    chosen, rejected = logps.view(-1, 2).unbind(1)
    (-F.logsigmoid(0.1 * (chosen - rejected))).mean().backward()
    products = monitor.read_products()
    model.zero_grad(set_to_none=True)
    return products


def run_two_gradients(model: nn.Module, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """(a) Two autograd.grad calls a pair, products summed parameter by parameter."""
    parameters = list(model.parameters())
    rows = []
    for pair in pairs:
        logps = compute_completion_logps(model, _collate(model, [pair]))
        chosen = torch.autograd.grad(logps[0], parameters, retain_graph=True)
        rejected = torch.autograd.grad(logps[1], parameters)
        both = [(w.view(-1), v.view(-1)) for w, v in zip(chosen, rejected, strict=True)]
        rows.append([sum((one[i] @ one[j]).item() for one in both) for i, j in ((0, 1), (0, 0), (1, 1))])
    return np.array(rows)


def run_concatenated(model: nn.Module, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """(d) Two backward passes a pair, gradients concatenated in float32, dot and norm: what public code does."""
    rows = []
    for pair in pairs:
        batch = collate_pairs([pair])
        vectors = []
        for place in (0, 1):
            model.zero_grad(set_to_none=True)
            compute_completion_logps(model, batch)[place].backward()
            vectors.append(torch.cat([parameter.grad.float().flatten() for parameter in model.parameters()]))
        model.zero_grad(set_to_none=True)
        chosen, rejected = vectors
        rows.append([torch.dot(chosen, rejected).item(), chosen.norm().item() ** 2, rejected.norm().item() ** 2])
    return np.array(rows)


def run_vmap(model: nn.Module, pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """(b) torch.func.vmap over grad: every row's gradient at once. All prompts, and all rows, equally long."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    batch = collate_pairs(pairs)
    start, count = len(pairs[0].prompt_ids), len(pairs[0].chosen_ids)

    def compute_logps(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        arguments = {"input_ids": ids[None], "use_cache": False}
        keep = torch.arange(start - 1, start + count - 1)
        logits = torch.func.functional_call(model, weights, kwargs={**arguments, "logits_to_keep": keep})[0][0]
        return torch.log_softmax(logits.float(), dim=-1).gather(1, ids[start:, None]).sum()

    differentiate = torch.func.vmap(torch.func.grad(compute_logps), in_dims=(None, 0))
    totals = []
    for rows in batch.input_ids.split(4):  # two pairs at a time: each row's gradient is as large as the model
        of_rows = torch.zeros(len(rows) // 2, 3)
        for gradient in differentiate(parameters, rows).values():
            chosen, rejected = gradient.flatten(1).unflatten(0, (-1, 2)).unbind(1)
            products = (chosen * rejected, chosen * chosen, rejected * rejected)
            of_rows += torch.stack([product.sum(1) for product in products], dim=1)
        totals.append(of_rows)
    return torch.cat(totals).numpy()


METHODS: dict[str, Method] = {
    "dpotool": run_engine,
    "training step (c)": run_training_step,
    "training step, monitored": run_monitored_step,
    "two gradients (a)": run_two_gradients,
    "concatenated (d)": run_concatenated,
    "vmap (b)": run_vmap,
}
