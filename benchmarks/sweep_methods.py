"""Five trainings from one start with their evaluations: `dpotool sweep` over five lambdas, and TRL five times.

TRL has no lambda; five runs of its DPO loss cost what five lambdas would. Both sides start from files, evaluate the
held-out pairs before the first step and after the last, and leave five checkpoints. TRL's runs follow each other in one
process on one dataset cache, so that it may find in it what it can.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from datasets import load_dataset
from training_methods import make_dpotool_settings, make_trl_config
from transformers import AutoModelForCausalLM, AutoTokenizer
from workloads import Workload

from dpotool.sweep.config import SweepConfig
from dpotool.sweep.run import sweep

LAMBDAS = (0.5, 0.75, 0.9, 0.95, 1.0)
Outcome = dict[str, float]
"""How many runs were made, and the held-out means of log pi(chosen), log pi(rejected) after DPO, lambda = 1."""


def sweep_dpotool(train: Workload, held_out: str, folder: Path, *, batch_size: int, n_steps: int) -> Outcome:
    """Runs `dpotool sweep`, its scoring of every cell included."""
    os.environ["DPOTOOL_CACHE"] = str(folder / "cache")
    config = SweepConfig(
        model=train.model,
        data=train.data,
        eval_data=held_out,
        output=str(folder / "sweep"),
        lambdas=",".join(map(str, LAMBDAS)),
        batch_size=batch_size,
        max_steps=n_steps,
        eval_steps=n_steps,
        dtype="float32",
        **make_dpotool_settings(),
    )
    result = sweep(config)
    if result.failures:
        raise RuntimeError(f"runs failed: {result.failures}")
    plain = result.table[result.table["lambda"] == 1.0].iloc[0]
    return {"runs": result.n_trained, "chosen": plain["chosen_logps"], "rejected": plain["rejected_logps"]}


def sweep_trl(train: Workload, held_out: str, folder: Path, *, batch_size: int, n_steps: int) -> Outcome:
    """Runs TRL's `DPOTrainer` five times, as it is."""
    from trl import DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(train.model)
    files = {"train": train.data, "test": held_out}
    for run in range(len(LAMBDAS)):
        data = load_dataset("json", data_files=files, cache_dir=str(folder / "datasets"))
        evaluation = {"eval_strategy": "steps", "eval_on_start": True, "eval_steps": n_steps}
        options = {"batch_size": batch_size, "max_steps": n_steps, **evaluation}
        trainer = DPOTrainer(
            AutoModelForCausalLM.from_pretrained(train.model, dtype=torch.float32),
            args=make_trl_config(str(folder / f"run-{run}"), **options),
            train_dataset=data["train"],
            eval_dataset=data["test"],
            processing_class=tokenizer,
        )
        trainer.train()
        trainer.save_model()
    last = [row for row in trainer.state.log_history if "eval_logps/chosen" in row][-1]
    return {"runs": len(LAMBDAS), "chosen": last["eval_logps/chosen"], "rejected": last["eval_logps/rejected"]}


SWEEPS = {"dpotool": sweep_dpotool, "TRL": sweep_trl}
