"""How much memory a command takes on each card, as a formula of the model's shape: arithmetic, not a measurement.

    python -m dpotool.likelihood.memory          # the table of docs/scale.md

`--dry-run` applies the same formula to the model at hand (`need_on_card`).

What a backward pass needs of a layer is counted for Llama-like layers (RMS norms, rotary positions, a gated
feed-forward part, fused attention). For each token, in values of the model's type: the inputs of the linear layers, of
the activation and of the product behind it, queries, keys, values and the result of attention, and what the two norms
keep, which in a 16-bit model is in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from dpotool.likelihood.completions import CHUNK_ELEMENTS_ON_GPU, get_causal_lm
from dpotool.likelihood.processes import find_layers
from dpotool.models.weights import has_quantised_weights

GB = 1e9
ADAMW_BUFFERS = 5
"""Of the size of the weights, in float32: both means of both halves of the pairs, and what raises accuracy."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the formula needs to know of a model."""

    name: str
    n_parameters: int
    n_layers: int
    layer_parameters: int
    hidden: int
    feed_forward: int
    key_value: int
    """Width of all keys of a token."""
    vocabulary: int = 128_256


SHAPES = (
    Shape("0.5B", 494_032_768, 24, 14_912_384, 896, 4864, 128),
    Shape("8B", 8_030_261_248, 32, 218_112_000, 4096, 14336, 1024),
    Shape("70B", 70_553_706_496, 80, 855_654_400, 8192, 28672, 1024),
)
"""Qwen2.5-0.5B, Llama-3-8B and Llama-3-70B."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and how."""

    command: str
    about: str = ""
    """What the table adds to the command."""
    weight_bytes: int = 2
    """Of each weight."""
    state_bytes: float = 0
    """Of each weight beside it: gradients and the optimiser's averages, or mean gradients."""
    n_tokens: int = 4096
    """Padded tokens of a batch."""
    keeps_layers: bool = False
    """Every layer keeps what its backward pass needs."""
    is_trained: bool = True
    """The weights have gradients, or are tapped for products; otherwise an adapter alone is trained."""
    n_adapter: int = 0
    """Weights of an adapter, in float32 with gradients and the optimiser's averages."""
    adapter_bytes: int = 4
    """Of each value that an adapter's layers keep of their inputs: peft gives them in float32 to weights in float32.
    In mixed precision it does not, and they take 2."""
    n_cards: int = 1
    """That the weights are spread over (`fully_shard`)."""


def count_saved_bytes(shape: Shape, weight_bytes: int, *, is_trained: bool) -> int:
    """Returns what a layer keeps of a token for the backward pass (bytes)."""
    of_hidden, of_feed_forward = (8, 4) if is_trained else (4, 3)
    if weight_bytes == 2:
        of_hidden += 2
    return weight_bytes * (of_hidden * shape.hidden + of_feed_forward * shape.feed_forward + 2 * shape.key_value)


def predict_memory(shape: Shape, plan: Plan) -> dict[str, float]:
    """Returns the bytes on a card, by what they are for."""
    n_outside = shape.n_parameters - shape.n_layers * shape.layer_parameters
    # of spread weights a layer and the next one are whole at a time, and all that lies outside the layers
    n_whole = 0 if plan.n_cards == 1 else n_outside + 2 * shape.layer_parameters
    saved = count_saved_bytes(shape, plan.weight_bytes, is_trained=plan.is_trained)
    if plan.n_adapter:  # each of a layer's seven adapters keeps its input for itself
        saved += plan.adapter_bytes * (6 * shape.hidden + shape.feed_forward)
    logits = min(CHUNK_ELEMENTS_ON_GPU, plan.n_tokens * shape.vocabulary) * (plan.weight_bytes + 8)
    if plan.keeps_layers:
        widest = plan.weight_bytes * (8 * shape.hidden + 4 * shape.feed_forward) + 8 * shape.hidden
        activations = plan.n_tokens * (shape.n_layers * saved + widest)
    else:  # the feed-forward part of one layer; the output layer works when the last one is done
        activations = plan.n_tokens * plan.weight_bytes * (4 * shape.hidden + 3 * shape.feed_forward)
        logits = max(0, logits - activations)
    n_gradients = shape.layer_parameters if plan.keeps_layers and plan.is_trained else 0
    return {
        "weights": plan.weight_bytes * (shape.n_parameters / plan.n_cards + n_whole),
        "state": plan.state_bytes * shape.n_parameters / plan.n_cards + 4 * n_gradients,
        "adapter": 16 * plan.n_adapter,
        "activations": activations,
        "logits": logits,
    }


EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""How configs name the number of experts; of theirs the formula knows nothing."""


def measure_shape(model: nn.Module) -> Shape | None:
    """Returns what the formula needs to know of a model; of one with an adapter, the base without it.

    None where the formula has no answer: quantised weights, experts, or a config that lacks one of the widths.
    """
    layers = find_layers(model)
    config = get_causal_lm(model).config.get_text_config()
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    feed_forward = getattr(config, "intermediate_size", None)
    if not (layers and isinstance(hidden, int) and heads and isinstance(feed_forward, int)):
        return None
    if has_quantised_weights(model) or any(getattr(config, name, None) for name in EXPERTS):
        return None
    head = getattr(config, "head_dim", None) or hidden // heads
    key_value = head * (getattr(config, "num_key_value_heads", None) or heads)
    n_adapter = count_adapter(model)
    n_parameters = sum(weight.numel() for weight in model.parameters()) - n_adapter
    of_layer = sum(weight.numel() for weight in layers[0].parameters()) - n_adapter // len(layers)
    return Shape("", n_parameters, len(layers), of_layer, hidden, feed_forward, key_value, config.vocab_size)


def count_adapter(model: nn.Module) -> int:
    """Returns the weights that are trained where others are not, as those of an adapter; 0 where all or none are."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    trained = [n for n, is_trained in sizes if is_trained]
    return sum(trained) if len(trained) < len(sizes) else 0


def need_on_card(model: nn.Module, plan: Plan, *, n_models: int = 1) -> int:
    """Returns the bytes that a command takes on one card, by the formula of docs/scale.md; 0 where it has no answer.

    Args:
        model: as the command has loaded it; the type of its weights and what is trained are taken from it.
        plan: what is run; its `weight_bytes`, `is_trained` and `n_adapter` are those of the model. Under an adapter,
            which has states of its own in the formula, the base has none.
        n_models: copies of the weights that are there at a time, such as a policy and a reference.
    """
    shape = measure_shape(model)
    if shape is None:
        return 0
    n_adapter = count_adapter(model)
    weight_bytes = next(model.parameters()).element_size()
    states = 0 if n_adapter else plan.state_bytes
    plan = replace(plan, weight_bytes=weight_bytes, state_bytes=states, is_trained=not n_adapter, n_adapter=n_adapter)
    parts = predict_memory(shape, plan)
    return round(sum(parts.values()) + (n_models - 1) * parts["weights"])


PLANS = (
    Plan("score", "16,384 tokens a batch", n_tokens=16_384),
    Plan("train --lora --dtype bfloat16", "4,096 tokens", keeps_layers=True, is_trained=False),
    Plan("train", "all weights in float32, 4,096 tokens", weight_bytes=4, state_bytes=12, keeps_layers=True),
    Plan("theory-gap --pairs-only --dtype bfloat16", "4,096 tokens", keeps_layers=True),
    Plan("theory-gap --dtype bfloat16", "4,096 tokens", state_bytes=4 * ADAMW_BUFFERS, keeps_layers=True),
)
"""The rows of the table."""
LORA_SHARE = 0.005
"""Weights of an adapter of rank 16 on all linear layers, as a share of the model's."""
CARDS = ((1, 24), (1, 80), (8, 80))
"""How many, and GB of each."""


def format_fits() -> str:
    """Returns the table of docs/scale.md: GB on each card, and whether that fits."""
    heads = ["command", "model", *(f"{size} GB" if n == 1 else f"{n} x {size} GB" for n, size in CARDS)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for plan in PLANS:
        for shape in SHAPES:
            cells = []
            for n_cards, size in CARDS:
                n_adapter = round(LORA_SHARE * shape.n_parameters) if not plan.is_trained else 0
                needed = sum(predict_memory(shape, replace(plan, n_cards=n_cards, n_adapter=n_adapter)).values()) / GB
                cells.append(f"{'yes' if needed < 0.95 * size else 'no'}, {needed:.0f} GB")
            lines.append(f"| `{plan.command}`, {plan.about} | {shape.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(format_fits())
