"""The check before the first step: the reference values are those of the model that training starts from."""

from __future__ import annotations

import numpy as np
import torch

from dpotool.errors import DpotoolError
from dpotool.progress import Progress
from dpotool.training.dataset import PairDataset
from dpotool.training.trainer import PreferenceTrainer
from dpotool.wording import count

CHECKED_PAIRS = 8
NOISE_PER_LOGP = 1e-4
"""Relative difference allowed between two float32 computations of one sum; other batches move it by less than 1e-5."""
NOISE_PER_TOKEN_BF16 = 0.05
"""Nats a token by which two bfloat16 computations of one sum may differ."""


def check_step_zero(
    trainer: PreferenceTrainer, dataset: PairDataset, *, is_own_start: bool, progress: Progress
) -> None:
    """Compares policy and reference before the first step: one that starts from its reference has margins of zero.

    A reference of another content (`--reference`) has margins of its own; their size is shown instead.

    Raises:
        DpotoolError: the reference values are not those of the model that training starts from.
    """
    n_pairs = min(CHECKED_PAIRS, len(dataset))
    pairs = dataset.pairs[:n_pairs]
    logps = trainer.scorer.compute(pairs)
    difference = np.concatenate(
        [logps.chosen - dataset.chosen_reference[:n_pairs], logps.rejected - dataset.rejected_reference[:n_pairs]]
    )
    if not is_own_start:
        progress.note(
            "the reference is not the model that training starts from: before training, log-ratios differ from 0 by "
            f"{np.abs(difference).mean():.3g} nats on average ({count(n_pairs, 'pair')})"
        )
        return
    scale = np.abs(np.concatenate([logps.chosen, logps.rejected]))
    tokens = np.array([len(pair.chosen_ids) for pair in pairs] + [len(pair.rejected_ids) for pair in pairs])
    allowed = NOISE_PER_TOKEN_BF16 * tokens if _is_low_precision(trainer) else 1e-3 + NOISE_PER_LOGP * scale
    if not bool((np.abs(difference) <= allowed).all()):
        worst = int(np.argmax(np.abs(difference) / allowed))
        raise DpotoolError(
            "the reference does not match: before the first step the policy must equal it",
            where=f"pair {pairs[worst % n_pairs].pair_id}",
            expected=f"a log-ratio of 0 within {allowed[worst]:.2g} nats",
            got=f"{difference[worst]:.4g}",
            remedy="Clear the stored values (`dpotool cache clear`), or name the model with --reference",
        )


def _is_low_precision(trainer: PreferenceTrainer) -> bool:
    weights = {parameter.dtype for parameter in trainer.policy.parameters()}
    return bool(trainer.args.bf16) or bool(weights & {torch.bfloat16, torch.float16})
