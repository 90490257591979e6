"""Content hashes of a model and a tokenizer: equal fingerprints mean the same weights and the same tokens."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


def fingerprint_model(model: nn.Module) -> str:
    """Returns 16 hex digits that change with any weight, its name, type or shape, and with the architecture's settings.

    A weight that is tied to another is hashed under each of its names. Settings that do not change what the model
    computes (its path, the library's version) are left out.
    """
    digest = hashlib.sha256(_settings_that_count(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        data: Any = _fetch(model, name, tensor).contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(data.numpy()))
    return digest.hexdigest()[:16]


def _fetch(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Returns a weight on the CPU, also one that lies in memory or on disk until its layer runs (`--device-map`)."""
    if not tensor.is_meta:
        return tensor.detach().cpu()
    owner, _, leaf = name.rpartition(".")
    with align_module_device(model.get_submodule(owner), "cpu"):
        fetched: Tensor = getattr(model.get_submodule(owner), leaf)
        return fetched.detach().clone()


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns 16 hex digits that change with the vocabulary, the merge rules, special tokens and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [
        backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True),
        json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        json.dumps(tokenizer.chat_template, sort_keys=True, default=str),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _settings_that_count(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"):
        settings.pop(name, None)
    adapters = getattr(model, "peft_config", None)
    if isinstance(adapters, dict):
        settings["adapters"] = {name: _scale_of(adapter.to_dict()) for name, adapter in adapters.items()}
    return json.dumps(settings, sort_keys=True, default=str)


def _scale_of(adapter: dict[str, Any]) -> dict[str, Any]:
    """What an adapter's settings do to the effect of its weights."""
    names = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
    return {name: adapter[name] for name in names if name in adapter}
