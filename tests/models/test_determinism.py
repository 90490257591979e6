"""A row has one number, whatever it is batched with: no dropout, no jitter, the rotary factors it has alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pairs
from model_families import build_small
from torch import nn
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedConfig

from dpotool.data.pairs import TokenizedPair
from dpotool.gradients.engine import compute_fast_products
from dpotool.gradients.products import compute_gradient_products
from dpotool.gradients.real_steps import EverythingInFloat64
from dpotool.likelihood.batch import SharedBatch, collate_pairs
from dpotool.likelihood.completions import compute_completion_logps
from dpotool.likelihood.layout import RowLayout, draws_in_training, find_row_limit
from dpotool.likelihood.pair_logps import compute_pair_logps
from dpotool.models.determinism import find_length_switches
from dpotool.models.loading import load_model

DRAWING: dict[str, dict[str, object]] = {
    "starcoder2": {"residual_dropout": 0.3, "embedding_dropout": 0.3, "attention_dropout": 0.3},
    "falcon": {"attention_dropout": 0.3, "hidden_dropout": 0.3, "head_dim": None, "new_decoder_architecture": False},
    "gpt_bigcode": {"head_dim": None, "num_key_value_heads": None},
    "gpt2": {"head_dim": None, "num_key_value_heads": None},
    "persimmon": {"hidden_dropout": 0.3, "attention_dropout": 0.3, "head_dim": None, "num_key_value_heads": None},
    "biogpt": {"layerdrop": 0.3, "head_dim": None, "num_key_value_heads": None},
    "xglm": {"layerdrop": 0.3, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "head_dim": None},
    "seed_oss": {"residual_dropout": 0.3, "attention_dropout": 0.3},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "resid_pdrop": 0.3,
        "attn_config": {"attn_pdrop": 0.3, "kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 48,
            "hidden_size": 32,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "moe_jitter_eps": 0.3,
        },
        **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"), None),
        "num_key_value_heads": None,
    },
    "phimoe": {"num_local_experts": 4, "router_jitter_noise": 0.3, "input_jitter_noise": 0.3},
    "mixtral": {"num_local_experts": 4, "router_jitter_noise": 0.3},
    "minimax": {"num_local_experts": 4, "router_jitter_noise": 0.3, "block_size": 4},
}


@pytest.mark.parametrize("family", DRAWING)
def test_the_first_loss_is_log_two(family: str, tmp_path: Path) -> None:
    model = build_small(family, DRAWING[family], dtype=torch.float32)
    assert draws_in_training(model), "else there is nothing to see here"
    model.save_pretrained(tmp_path)
    ids = torch.arange(3, 19).reshape(2, 8)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, use_cache=False)[0].log_softmax(-1)
        loaded = load_model(str(tmp_path)).train()
        got = loaded(input_ids=ids, use_cache=False)[0].log_softmax(-1)
    margins = (got - expected).sum(dim=(1, 2))
    losses = -nn.functional.logsigmoid(0.1 * (margins[0] - margins[1]))
    assert float(losses) == pytest.approx(math.log(2), abs=1e-4)
    assert torch.allclose(got, expected, atol=1e-5)
    assert not draws_in_training(loaded)


def test_every_rate_is_zero_in_modules_and_configurations(tmp_path: Path) -> None:
    build_small("dbrx", DRAWING["dbrx"], dtype=torch.float32).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    configs = [model.config, *(c for c in vars(model.config).values() if isinstance(c, PreTrainedConfig))]
    assert len(configs) == 3
    holders = [vars(holder) for holder in (*model.modules(), *configs)]
    rates = {name: value for holder in holders for name, value in holder.items() if "drop" in name or "jitter" in name}
    assert len(rates) > 3
    assert not any(isinstance(value, float) and value > 0 for value in rates.values())


SWITCH = 48


def make_pair(number: int, prompt: int, chosen: int, rejected: int) -> TokenizedPair:
    ids = iter(range(3, 1000))
    parts = (tuple((7 * next(ids) + number) % 90 + 3 for _ in range(n)) for n in (prompt, chosen, rejected))
    return TokenizedPair(number, *parts)


LONG = [make_pair(100, 40, 12, 15), make_pair(101, 60, 4, 3)]
ASTRIDE = [make_pair(102, 40, 8, 9), make_pair(103, 20, 60, 5)]
"""One completion reaches beyond the switch, the other does not; the first by a single token."""
PAIRS = [*make_pairs(6), *LONG, *ASTRIDE, make_pair(104, 30, 6, 6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Phi-3 of two layers whose long factors begin beyond 48 tokens."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 4.0, 8.0]}
    config = Phi3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        original_max_position_embeddings=SWITCH,
        rope_scaling={"rope_type": "longrope", **factors},
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    path = tmp_path_factory.mktemp("phi3") / "longrope"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> nn.Module:
    return load_model(str(folder), dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def alone(folder: Path) -> np.ndarray:
    """Log-probabilities (pairs, 2) of each completion as transformers' own model gives it for one sequence alone."""
    plain = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float64)
    values = []
    for pair in PAIRS:
        for ids in (pair.chosen_ids, pair.rejected_ids):
            with torch.no_grad():
                logps = plain(torch.tensor([[*pair.prompt_ids, *ids]])).logits[0].log_softmax(-1)
            start = len(pair.prompt_ids) - 1
            values.append(float(logps[start:-1].gather(1, torch.tensor(ids)[:, None]).sum()))
    return np.array(values).reshape(-1, 2)


def test_the_switch_matters(folder: Path, alone: np.ndarray) -> None:
    """Without what is tested here, a pair scored beside a long one gets other factors."""
    plain = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float64)
    beside = compute_completion_logps(plain, collate_pairs([PAIRS[0], LONG[0]])).detach()
    assert abs(float(beside[0]) - alone[0, 0]) > 1e-3
    assert find_length_switches(plain.config) == [SWITCH]


@pytest.mark.parametrize("layout", ["auto", "shared", "paired"])
@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_scores_are_those_of_each_sequence_alone(
    model: nn.Module, alone: np.ndarray, layout: str, batch_tokens: int
) -> None:
    for order in (PAIRS, PAIRS[::-1]):
        got = compute_pair_logps(model, order, batch_tokens=batch_tokens, layout=layout)
        expected = alone if order is PAIRS else alone[::-1]
        np.testing.assert_allclose(np.stack([got.chosen, got.rejected], axis=1), expected, rtol=1e-5)


def test_a_row_may_end_in_equal_tokens(model: nn.Module, folder: Path) -> None:
    """Padding repeats a row's last token: the row's own repetitions count all the same, those after it do not."""
    beyond = TokenizedPair(0, tuple(range(3, 43)), (*range(50, 56), 9, 9, 9), (7,))
    within = TokenizedPair(1, tuple(range(3, 43)), (*range(50, 56), 9, 9), (7,))
    plain = Phi3ForCausalLM.from_pretrained(folder, dtype=torch.float64)
    together = compute_pair_logps(model, [beyond, within, LONG[0]], layout="paired")
    for place, pair in enumerate((beyond, within)):
        slow = compute_completion_logps(plain, collate_pairs([pair], with_rejected=False))
        assert together.chosen[place] == pytest.approx(float(slow.detach()), rel=1e-5)


def test_layouts_and_batches_agree_to_the_last_digits(model: nn.Module) -> None:
    with EverythingInFloat64():
        one, other = (
            compute_pair_logps(model, PAIRS, batch_tokens=tokens, layout=layout)
            for tokens, layout in ((1, "paired"), (100_000, "shared"))
        )
    assert other.n_shared == 7, "rows within the switch are shared, longer ones are not"
    np.testing.assert_allclose(other.chosen, one.chosen, rtol=1e-9)
    np.testing.assert_allclose(other.rejected, one.rejected, rtol=1e-9)


def test_a_training_step_gives_each_pair_what_it_has_alone(model: nn.Module, alone: np.ndarray) -> None:
    """Micro-batches of all lengths, and of short pairs, which share rows."""
    assert find_row_limit(model) == SWITCH
    layout = RowLayout.of(model, "shared")
    for places in (range(len(PAIRS)), range(6)):
        batch = layout.collate_step([PAIRS[place] for place in places])
        assert isinstance(batch, SharedBatch) == (len(places) == 6)
        got = compute_completion_logps(model, batch).detach().numpy().reshape(-1, 2)
        np.testing.assert_allclose(got, alone[list(places)], rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_gradient_products_do_not_take_a_prompt_for_the_same_where_it_is_not(
    model: nn.Module, batch_tokens: int
) -> None:
    pairs = [*LONG, *ASTRIDE, PAIRS[0]]
    fast, _ = compute_fast_products(model, pairs, batch_tokens=batch_tokens)
    slow = compute_gradient_products(model, pairs)
    for name in ("grad_inner_product", "chosen_grad_sq_norm", "rejected_grad_sq_norm"):
        np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), rtol=1e-5)
