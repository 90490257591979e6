"""The memory formula against what autograd keeps, what a GPU was measured to take, and what the page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_families import build_family
from transformers import AutoModelForCausalLM, LlamaConfig

from dpotool.likelihood.batch import collate_rows
from dpotool.likelihood.completions import compute_completion_states
from dpotool.likelihood.memory import (
    SHAPES,
    Plan,
    Shape,
    count_saved_bytes,
    format_fits,
    measure_shape,
    need_on_card,
    predict_memory,
)

SMALL = Shape("small", 0, 4, 0, hidden=256, feed_forward=704, key_value=128)


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_layer_keeps_is_what_autograd_keeps(dtype: torch.dtype, is_trained: bool) -> None:
    """Counts the storages of all saved tensors but the weights; the final norm's are no layer's."""
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=SMALL.hidden,
        intermediate_size=SMALL.feed_forward,
        num_hidden_layers=SMALL.n_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(is_trained)
    model.get_input_embeddings().register_forward_hook(lambda _module, _ids, states: states.requires_grad_())
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = collate_rows([(list(range(1, 65)), list(range(1, 17)))] * 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute_completion_states(model, batch)
    measured = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    expected = (
        batch.input_ids.numel() * SMALL.n_layers * count_saved_bytes(SMALL, dtype.itemsize, is_trained=is_trained)
    )
    assert measured == pytest.approx(expected, rel=0.1)


MIXED = Plan("LoRA step", n_tokens=2264, keeps_layers=True, is_trained=False, n_adapter=41_943_040, adapter_bytes=2)


@pytest.mark.parametrize(
    ("shape", "plan", "above"),
    [
        (SHAPES[1], Plan("score, a row each", n_tokens=65_536), 7.23),
        (SHAPES[0], Plan("score, a row each", n_tokens=65_536), 2.23),
        (SHAPES[1], MIXED, 16.5),
    ],
    ids=lambda value: getattr(value, "command", getattr(value, "name", None)),
)
def test_it_comes_close_to_what_an_h100_took_above_the_weights(shape: Shape, plan: Plan, above: float) -> None:
    """GiB, from benchmarks/device.jsonl: scoring, and LoRA steps in mixed precision."""
    parts = predict_memory(shape, plan)
    assert sum(size for name, size in parts.items() if name != "weights") / 2**30 == pytest.approx(above, rel=0.02)


def test_it_comes_close_to_every_peak_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's part for memory, as it is in benchmarks/device.jsonl; a tenth may be missing."""
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    from device_memory import COMMANDS, add_formula

    rows = [json.loads(line) for line in (benchmarks / "device.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [add_formula(row) for row in rows if row["part"] == "memory" and "command" in row]
    assert {(row["model"], row["command"]) for row in measured} == set(COMMANDS)
    for row in measured:
        assert row["formula / peak"] == pytest.approx(1, abs=0.1), row


def test_spread_weights_take_less_of_each_card() -> None:
    one, eight = (predict_memory(SHAPES[2], Plan("score", n_cards=n)) for n in (1, 8))
    assert one["weights"] == 2 * SHAPES[2].n_parameters
    assert one["weights"] / 8 < eight["weights"] < one["weights"] / 5


def test_the_page_shows_this_formula() -> None:
    page = Path(__file__).parents[2] / "docs" / "scale.md"
    assert format_fits() in page.read_text(encoding="utf-8"), "python -m dpotool.likelihood.memory gives the table"


def test_the_shape_is_read_from_a_model() -> None:
    """Llama-3-8B without its weights; its row of the page then comes out of the model itself."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    found = measure_shape(model)
    assert found is not None
    for name in ("n_parameters", "n_layers", "layer_parameters", "hidden", "feed_forward", "key_value", "vocabulary"):
        assert getattr(found, name) == getattr(SHAPES[1], name), name
    plan = Plan("score", n_tokens=16_384)
    assert need_on_card(model, plan) == round(sum(predict_memory(SHAPES[1], plan).values()))
    assert need_on_card(model, plan, n_models=2) - need_on_card(model, plan) == 2 * SHAPES[1].n_parameters


def test_an_adapter_has_states_and_its_base_has_none() -> None:
    from peft import LoraConfig, get_peft_model

    base = build_family("llama")  # in float64
    bare = measure_shape(base)
    assert bare is not None
    plan = Plan("train", state_bytes=12, n_tokens=100, keeps_layers=True)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear"))
    n_adapter = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert measure_shape(adapted) == bare
    expected = predict_memory(
        bare, Plan("", weight_bytes=8, n_tokens=100, keeps_layers=True, is_trained=False, n_adapter=n_adapter)
    )
    assert need_on_card(adapted, plan) == round(sum(expected.values()))


def test_weights_that_the_formula_does_not_know_have_no_answer() -> None:
    """Which experts a token takes decides what they keep of it."""
    assert need_on_card(build_family("mixtral"), Plan("score")) == 0
