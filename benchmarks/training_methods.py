"""A DPO training run by dpotool and by TRL, from the same weights, on the same pairs in the same order.

Both with the reference computed beforehand, float32, the same optimiser, batch and learning rate, no evaluation, no
checkpoints on the way, activations kept. What TRL's trainer would tokenise it is given as token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Trainer
from workloads import Workload, load_pairs

from dpotool.data.pairs import TokenizedPair
from dpotool.progress import SILENT
from dpotool.training.config import TrainConfig, fill_in
from dpotool.training.folder import claim, name_folder
from dpotool.training.objective import build_objective
from dpotool.training.preparation import prepare_trainer

BETA = 0.1
LEARNING_RATE = 1e-6
OPTIMIZER = "adamw_torch_fused"
SEED = 0


def prepare_dpotool(workload: Workload, folder: str, *, batch_size: int, n_steps: int) -> Trainer:
    """dpotool: what `dpotool train --loss dpo` is about to start when it has prepared everything."""
    config = fill_in(
        TrainConfig(
            model=workload.model,
            data=workload.data,
            output=folder,
            loss="dpo",
            batch_size=batch_size,
            max_steps=n_steps,
            **make_dpotool_settings(),
        )
    )
    config, run = name_folder(config)
    claim(run, config)
    return prepare_trainer(config, build_objective(config), run, SILENT)


def prepare_trl(workload: Workload, folder: str, *, batch_size: int, n_steps: int) -> Trainer:
    """TRL: `DPOTrainer` with `precompute_ref_log_probs=True`, which its constructor does."""
    tokenizer, pairs = load_pairs(workload)
    model = AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32)
    return build_trl_trainer(model, tokenizer, pairs, folder, batch_size=batch_size, n_steps=n_steps)


def build_trl_trainer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TokenizedPair],
    folder: str,
    *,
    batch_size: int,
    n_steps: int,
    **options: object,
) -> Any:
    """Returns a `DPOTrainer` that takes token ids as they are, whatever else it does.

    Args:
        options: of its `DPOConfig`, in place of those that a CPU is best served by.
    """
    from trl import DPOTrainer

    class TrainerOnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_args: object) -> Dataset:
            return dataset

    is_on_cpu = next(model.parameters()).device.type == "cpu"
    options = {"use_cpu": is_on_cpu, "dataloader_pin_memory": not is_on_cpu, **options}
    arguments = make_trl_config(folder, batch_size=batch_size, max_steps=n_steps, **options)
    return TrainerOnIds(model, args=arguments, train_dataset=make_trl_dataset(pairs), processing_class=tokenizer)


def make_dpotool_settings() -> dict[str, Any]:
    """Returns what `make_trl_config` tells TRL, in dpotool's words."""
    return {
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "scheduler": "constant",
        "warmup_ratio": 0.0,
        "optimizer": OPTIMIZER,
        "seed": SEED,
        "device": "cpu",
    }


def make_trl_config(folder: str, **options: object) -> Any:
    """Returns a `DPOConfig` with what both sides share; TRL's default bfloat16 and recomputed activations are off."""
    from trl import DPOConfig

    batch_size = options.pop("batch_size")
    shared: dict[str, Any] = {
        "output_dir": folder,
        "precompute_ref_log_probs": True,
        "precompute_ref_batch_size": 1,
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "max_length": None,
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": OPTIMIZER,
        "max_grad_norm": 1.0,
        "seed": SEED,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
    }
    return DPOConfig(**{**shared, **options})


def make_trl_dataset(pairs: Sequence[TokenizedPair]) -> Dataset:
    """Returns pairs as TRL's own preparation leaves them."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_list([{name: list(getattr(pair, name)) for name in names} for pair in pairs])


TRAINERS = {"dpotool": prepare_dpotool, "TRL": prepare_trl}
