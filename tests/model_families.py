"""Tiny random models of many architectures, for tests that must hold for each of them."""

from __future__ import annotations

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCAB_SIZE = 97

_SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama-tied-biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 4}),
    "gemma3": ("gemma3_text", {"sliding_window": 4}),
    "gpt2": ("gpt2", {"n_positions": 128, "num_key_value_heads": None, "head_dim": None}),
    "gpt-neox": ("gpt_neox", {}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("bloom", {"n_head": 4, "n_layer": 2}),
    "falcon": ("falcon", {"head_dim": None, "new_decoder_architecture": False}),
    "qwen3-moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
}


def build_family(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """Returns a random model of that family, in evaluation mode, with weights large enough to give peaked outputs."""
    model_type, settings = FAMILIES[name]
    return build_small(model_type, settings, dtype=dtype, seed=seed)


def build_small(
    model_type: str, settings: dict[str, object], *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> PreTrainedModel:
    """Returns a random model of a type that transformers knows, small but for what the settings say."""
    merged = {key: value for key, value in {**_SMALL, **settings}.items() if value is not None}
    config = CONFIG_MAPPING[model_type](**merged)
    config._experts_implementation = "eager"  # the grouped kernels know no float64
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model
