"""Log-probabilities against a brute force over full logits, for every architecture family, in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import make_pairs
from model_families import FAMILIES, VOCAB_SIZE, build_family, build_small
from torch import Tensor, nn

from dpotool.likelihood import completions
from dpotool.likelihood.batch import CompletionBatch, collate_rows
from dpotool.likelihood.completions import can_split_head, compute_completion_logps, compute_token_logps
from dpotool.likelihood.pair_logps import compute_pair_logps

ROWS = [((1, 5, 6, 7), (8, 9, 2)), ((1, 3), (4, 5, 6, 7, 8, 9, 10, 11, 2)), ((1, 20, 21, 22, 23, 24, 25), (30, 2))]


def brute_force(model: nn.Module, prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    """Sum of log-softmax values, one row alone, no padding, no trick."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logps = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].double(), dim=-1)
    return sum(float(logps[len(prompt) - 1 + place, token]) for place, token in enumerate(completion))


def precision_of(family: str) -> float:
    """These compute parts in float32, and some processors add up a row of another length in another order there."""
    return 1e-7 if family in ("gemma2", "gemma3", "bloom") else 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_brute_force(family: str) -> None:
    model = build_family(family)
    expected = [brute_force(model, *row) for row in ROWS]
    got = compute_completion_logps(model, collate_rows(ROWS))
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, rel=precision_of(family))
    assert can_split_head(model), "the memory-saving path must serve every family here"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "cohere"])
def test_full_logits_path_gives_the_same_numbers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build_family(family), collate_rows(ROWS)
    split = compute_completion_logps(model, batch)
    monkeypatch.setattr(completions, "can_split_head", lambda _model: False)
    assert torch.allclose(compute_completion_logps(model, batch), split, rtol=1e-12)


def test_soft_capping_is_not_lost() -> None:
    """Without Gemma-2's tanh cap (3.0 here) the numbers differ, so the test above is not blind to it."""
    model, batch = build_family("gemma2"), collate_rows(ROWS)
    capped = compute_completion_logps(model, batch)
    model.config.final_logit_softcapping = None
    assert (compute_completion_logps(model, batch) - capped).abs().max() > 0.05


def test_equals_minus_the_summed_cross_entropy_of_transformers() -> None:
    model = build_family("llama")
    prompt, completion = ROWS[0]
    labels = torch.tensor([[-100] * len(prompt) + list(completion)])
    loss = model(input_ids=torch.tensor([[*prompt, *completion]]), labels=labels).loss
    got = compute_completion_logps(model, collate_rows([ROWS[0]]))
    # transformers takes the loss in float32
    assert got.item() == pytest.approx(-loss.item() * len(completion), rel=1e-6)


def test_prompt_tokens_contribute_nothing() -> None:
    """Moving the boundary by one token adds exactly that token's log-probability."""
    model = build_family("llama")
    whole = compute_token_logps(model, collate_rows([((1, 5), (6, 7, 2))])).logps
    short = compute_token_logps(model, collate_rows([((1, 5, 6), (7, 2))])).logps
    assert torch.allclose(whole[1:], short, rtol=1e-12)
    assert len(whole) == 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "bloom"])
def test_padding_and_order_change_nothing(family: str) -> None:
    model = build_family(family)
    together = compute_completion_logps(model, collate_rows(ROWS))
    alone = torch.cat([compute_completion_logps(model, collate_rows([row])) for row in ROWS])
    turned = compute_completion_logps(model, collate_rows(ROWS[::-1])).flip(0)
    assert torch.allclose(together, alone, rtol=precision_of(family))
    assert torch.allclose(together, turned, rtol=precision_of(family))


def gradients(model: nn.Module, batch: CompletionBatch) -> list[Tensor]:
    model.zero_grad()
    compute_completion_logps(model, batch).sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", ["llama-tied-biased", "gemma2"])
def test_chunks_change_neither_values_nor_gradients(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build_family(family), collate_rows(ROWS)
    whole, whole_gradients = compute_completion_logps(model, batch), gradients(model, batch)
    monkeypatch.setattr(completions, "CHUNK_ELEMENTS", 3 * VOCAB_SIZE)
    assert torch.allclose(compute_completion_logps(model, batch), whole, rtol=1e-12)
    for chunked, expected in zip(gradients(model, batch), whole_gradients, strict=True):
        assert torch.allclose(chunked, expected, rtol=1e-9, atol=1e-12)


def test_output_layer_sees_completion_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build_family("llama"), collate_rows(ROWS)
    assert can_split_head(model)
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape[-2]))
    monkeypatch.setattr(completions, "CHUNK_ELEMENTS", 4 * VOCAB_SIZE)
    compute_completion_logps(model, batch)
    assert sum(seen) == sum(len(completion) for _, completion in ROWS)
    assert max(seen) == 4


def test_softmax_of_a_bfloat16_model_is_float32() -> None:
    model = build_family("llama", dtype=torch.bfloat16)
    tokens = compute_token_logps(model, collate_rows(ROWS))
    assert tokens.logps.dtype == torch.float32
    assert compute_completion_logps(model, collate_rows(ROWS)).dtype == torch.float64


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        collate_rows([((), (5, 2))])


_DSA = {
    "head_dim": None, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "moe_intermediate_size": 16, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "index_topk": 8, "index_n_heads": 4, "index_head_dim": 16,
}  # fmt: skip


picking = pytest.mark.parametrize(
    ("kind", "settings"), [("deepseek_v32", _DSA), ("glm_moe_dsa", _DSA), ("doge", {"keep_window_size": 8})]
)


@picking
@pytest.mark.parametrize("layout", ["auto", "paired", "shared"])
def test_attention_that_picks_the_best_tokens_does_not_see_padding(
    kind: str, settings: dict[str, object], layout: str
) -> None:
    """Of equally good tokens it picks others where more stand behind them; Doge starts with all equal."""
    model = build_small(kind, settings, dtype=torch.float32)
    pairs = make_pairs(6, longest=30)
    assert max(pair.longest for pair in pairs) > 2 * 8
    got = compute_pair_logps(model, pairs, batch_tokens=10_000, layout=layout)
    for place, pair in enumerate(pairs):
        expected = [brute_force(model, pair.prompt_ids, ids) for ids in (pair.chosen_ids, pair.rejected_ids)]
        assert (got.chosen[place], got.rejected[place]) == pytest.approx(expected, abs=1e-4)


@picking
def test_nor_does_its_gradient_in_a_training_step(kind: str, settings: dict[str, object]) -> None:
    """A step's gradient is the sum of those of its rows, each alone."""
    model = build_small(kind, settings, dtype=torch.float32)
    pairs = make_pairs(3, longest=30)

    def differentiate(*rows: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, Tensor]:
        model.zero_grad()
        compute_completion_logps(model, collate_rows(rows)).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    rows = [(pair.prompt_ids, ids) for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    alone = [differentiate(row) for row in rows]
    for name, gradient in differentiate(*rows).items():
        expected = sum(one[name] for one in alone if name in one)
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name
