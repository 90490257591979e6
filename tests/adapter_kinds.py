"""Adapters of every kind that peft has, on any base model, with trained numbers that were moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpotool.models.loading import load_model

peft = pytest.importorskip("peft", reason="adapters need peft (dpotool[peft])")
IDS = torch.arange(3, 20)[None]

KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "dora": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "bias": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all"),
    "saved": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "tokens": lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 6, 7]),
    "embedding": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ln-tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4, r=0),
    "loha": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
}


def save_adapter(folder: Path, base: Path, config: Any) -> tuple[Path, torch.Tensor]:
    """Writes an adapter whose every trained number was moved, and returns the logits it gives."""
    torch.manual_seed(0)
    model = peft.get_peft_model(load_model(str(base), dtype="float32"), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model.eval()(input_ids=IDS).logits
