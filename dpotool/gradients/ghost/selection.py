"""Which parameters count: all that are trained, or a named part of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from dpotool.errors import DpotoolError
from dpotool.likelihood.completions import get_causal_lm
from dpotool.likelihood.processes import find_layers
from dpotool.models.weights import refuse_quantised
from dpotool.wording import count


@dataclass(frozen=True, slots=True)
class ParameterSelection:
    """Parameters by their names in `model.named_parameters()`, and what to call them in a result."""

    label: str
    parameters: dict[str, nn.Parameter]

    @property
    def n_elements(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())


def select_parameters(model: nn.Module, choice: str = "all") -> ParameterSelection:
    """Returns the chosen ones among the parameters with `requires_grad`.

    Args:
        choice: `all`; `last-N`, those inside the last N decoder layers; `lora`, those of a LoRA adapter; `head`, those
            of the output layer (where it is tied to the embedding, that one matrix with both its uses).

    Raises:
        DpotoolError: no such choice, nothing is chosen by it, or the weights are quantised and not those of an adapter.
    """
    label, is_chosen = _parse_choice(model, choice)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise DpotoolError(
            "no parameter of the model is trained, so there is no gradient",
            remedy="Load an adapter as trainable, or unfreeze the model",
        )
    chosen = {name: parameter for name, parameter in trained.items() if is_chosen(name, parameter)}
    if not chosen:
        raise DpotoolError(
            "none of the trained parameters is among these",
            where="--parameters",
            expected="a part of the model that is trained",
            got=choice,
        )
    _check_quantised(model, chosen)
    return ParameterSelection(label, chosen)


IsChosen = Callable[[str, nn.Parameter], bool]


def _parse_choice(model: nn.Module, choice: str) -> tuple[str, IsChosen]:
    if choice == "all":
        return "all trained parameters", lambda _name, _parameter: True
    if choice == "lora":
        return "LoRA adapter", lambda name, _parameter: "lora_" in name
    if choice == "head":
        output_layer = get_causal_lm(model).get_output_embeddings()
        ids = {id(parameter) for parameter in output_layer.parameters()} if output_layer is not None else set()
        return "output layer", lambda _name, parameter: id(parameter) in ids
    match = re.fullmatch(r"last-([1-9]\d*)", choice)
    if match is None:
        raise DpotoolError(
            "no such choice of parameters", where="--parameters", expected="all, last-N, lora or head", got=repr(choice)
        )
    layers = find_layers(model)
    if not layers:
        raise DpotoolError(
            "the model's layers cannot be told apart", where="--parameters", remedy="Use --parameters all"
        )
    n_last = int(match[1])
    if n_last > len(layers):
        raise DpotoolError(
            "the model has fewer layers", where="--parameters", expected=f"at most last-{len(layers)}", got=choice
        )
    ids = {id(parameter) for layer in layers[-n_last:] for parameter in layer.parameters()}
    return f"last {n_last} of {count(len(layers), 'layer')}", lambda _name, parameter: id(parameter) in ids


def _check_quantised(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
    """Refuses what has no exact gradient. An adapter on a quantised base has one: of the model as it computes."""
    quantized = [name for name, weight in chosen.items() if not weight.is_floating_point() or weight.itemsize == 1]
    is_quantized = getattr(get_causal_lm(model), "is_quantized", False) or getattr(model, "hf_quantizer", None)
    if quantized or (is_quantized and not hasattr(model, "peft_config")):
        refuse_quantised(where=quantized[0] if quantized else None)
