"""Real optimizer steps on a model, measured and undone, which the theory's predictions are compared with.

The gradient is that of the loss used in training, and the step is that of torch's optimizer. Both are computed in
float64 (`in_float64`), so that the error of a prediction is not rounding. Afterwards the weights are the very tensors
that were there before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.gradients.ghost.modes import evaluation_mode, training_only
from dpotool.likelihood.batch import collate_pairs
from dpotool.likelihood.budget import plan_batches
from dpotool.likelihood.completions import compute_completion_logps, get_causal_lm
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.losses.registry import get_loss
from dpotool.losses.spec import PairLogps
from dpotool.models.weights import has_quantised_weights
from dpotool.settings.shared import AUTO

Values = Float[np.ndarray, " pairs"]
OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


@contextmanager
def put_back(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Restores the parameters and their `.grad` at the end of the block, whatever happened to them inside."""
    kept = {name: (parameter.detach().clone(), parameter.grad) for name, parameter in parameters.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, (values, grad) in kept.items():
                parameters[name].grad = grad
                parameters[name].copy_(values)


@dataclass(frozen=True, slots=True)
class StepLab:
    """A model, pairs and a loss scale to take steps with; enter `in_float64` around its use."""

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    """What a step moves."""
    pairs: Sequence[TokenizedPair]
    reference_logps: tuple[Values, Values]
    """Of the chosen and rejected answers, nats."""
    beta: float
    batch_tokens: int
    layout: str = AUTO
    """Of the rows that log-likelihoods are measured in."""

    def compute_loss_gradient(self, shift: float) -> dict[str, Tensor]:
        """Returns the gradient of the mean DPO-Shift loss over the pairs; f = 1 is the DPO loss."""
        spec = get_loss("dpo" if shift == 1 else "shift")
        options = spec.resolve_options(beta=self.beta)
        total = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        with evaluation_mode(self.model), training_only(self.model, self.parameters.values()), torch.enable_grad():
            for batch in plan_batches([2 * pair.longest for pair in self.pairs], self.batch_tokens):
                losses = spec.compute(self._run(batch), options, shift)
                gradients = torch.autograd.grad(
                    losses.sum() / len(self.pairs), list(self.parameters.values()), allow_unused=True
                )
                for sum_, gradient in zip(total.values(), gradients, strict=True):
                    if gradient is not None:
                        sum_ += gradient
        return total

    def _run(self, batch: list[int]) -> PairLogps:
        device = next(iter(self.parameters.values())).device
        logps = compute_completion_logps(self.model, collate_pairs([self.pairs[i] for i in batch]).to(device))
        chosen, rejected = (torch.tensor(values[batch], device=device) for values in self.reference_logps)
        return PairLogps(logps[0::2], logps[1::2], chosen, rejected)

    def step(self, optimizer: str, gradient: Mapping[str, Tensor], rate: float) -> None:
        """Makes one real step; call inside `put_back`."""
        for name, parameter in self.parameters.items():
            parameter.grad = gradient[name]
        OPTIMIZERS[optimizer](list(self.parameters.values()), lr=rate, weight_decay=0.0).step()  # type: ignore[call-arg]

    def measure(self, optimizer: str, gradient: Mapping[str, Tensor], rate: float) -> tuple[Values, Values]:
        """Returns the log-likelihoods of all pairs after one step from the present weights, which stay."""
        with put_back(self.parameters):
            self.step(optimizer, gradient, rate)
            logps = compute_pair_logps(self.model, self.pairs, batch_tokens=self.batch_tokens, layout=self.layout)
        return logps.chosen, logps.rejected

    def find_update(self, optimizer: str, gradient: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
        """Returns what one step adds to each parameter."""
        start = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        with put_back(self.parameters):
            self.step(optimizer, gradient, rate)
            return {name: self.parameters[name].detach() - values for name, values in start.items()}


class EverythingInFloat64(TorchFunctionMode):
    """Lifts the casts to float32 that transformers makes in norms, soft-max and rotary embeddings of any model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Computes with float64 copies of the parameters; the parameters themselves come back, bit for bit.

    Raises:
        DpotoolError: some of them are quantised.
    """
    if has_quantised_weights(model):
        raise DpotoolError(
            "computes in float64, which quantised weights cannot be copied to",
            where="--verify",
            remedy="Use --check, which compares with autograd in the types that the model computes in",
        )
    settings: Any = get_causal_lm(model).config
    experts = getattr(settings, "_experts_implementation", None)
    kept = [(parameter, parameter.data, parameter.grad) for parameter in model.parameters()]
    for parameter, data, _ in kept:
        parameter.grad = None  # a gradient must have its parameter's type
        parameter.data = data.double()
    if experts is not None:
        settings._experts_implementation = "eager"  # grouped kernels know no float64
    try:
        with EverythingInFloat64():
            yield
    finally:
        if experts is not None:
            settings._experts_implementation = experts
        for parameter, data, grad in kept:
            parameter.grad = None
            parameter.data = data
            parameter.grad = grad
