"""Training mode computes what evaluation mode computes, for every architecture: the first DPO loss is log 2."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from model_families import build_small
from torch import nn
from transformers import PreTrainedConfig

from dpotool.likelihood.prompt_sharing import draws_in_training
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
