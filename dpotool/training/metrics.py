"""The numbers a training run logs, under TRL's names: means over pairs since the last log, never means of batch means.

Rewards, margins and accuracies are unshifted whatever the loss (beta times the log-ratio; a tie counts as wrong).
`displacement/chosen` is the mean change of log pi(chosen) against the reference, in nats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerState

from dpotool.likelihood.pair_logps import ScoredPairs
from dpotool.losses.spec import PairLogps
from dpotool.training.dataset import PAIR_COLUMNS, PairDataset, collate_columns

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dpotool.training.trainer import Objective


def compute_pair_metrics(pairs: PairLogps, beta: float) -> dict[str, Tensor]:
    """Returns per-pair values, (batch,) each, of everything whose mean is logged; what is not known is left out."""
    metrics = {"logps/chosen": pairs.policy_chosen_logps}
    if pairs.reference_chosen_logps is not None:
        metrics["displacement/chosen"] = pairs.policy_chosen_logps - pairs.reference_chosen_logps
    if pairs.policy_rejected_logps is not None:
        metrics["logps/rejected"] = pairs.policy_rejected_logps
        if pairs.reference_rejected_logps is not None and pairs.reference_chosen_logps is not None:
            rejected_logratios = pairs.policy_rejected_logps - pairs.reference_rejected_logps
            margins = beta * (metrics["displacement/chosen"] - rejected_logratios)
            metrics["rewards/chosen"] = beta * metrics["displacement/chosen"]
            metrics["rewards/rejected"] = beta * rejected_logratios
            metrics["rewards/margins"] = margins
            metrics["rewards/accuracies"] = torch.where(margins.isnan(), margins, (margins > 0).to(margins.dtype))
    return metrics


class PairSums:
    """Running sums over the pairs of the steps since the last log."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n_pairs = 0
        self._shift: float | None = None

    @torch.no_grad()
    def add(self, pairs: PairLogps, beta: float, shift: float | Tensor) -> None:
        """Adds a micro-batch; nothing is moved off the device, so this never waits for it."""
        metrics = compute_pair_metrics(pairs, beta)
        if isinstance(shift, Tensor):
            metrics["lambda"] = shift
        else:
            self._shift = shift
        for name, values in metrics.items():
            total = values.detach().double().sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._n_pairs += len(pairs.policy_chosen_logps)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means over all pairs of all processes, with the newest shift factor, and starts anew.

        Where each pair has a shift factor of its own, `lambda` is their mean.
        """
        if not self._n_pairs:
            return {}
        count = torch.tensor(float(self._n_pairs), dtype=torch.float64)
        stacked = torch.stack([*self._sums.values(), count.to(next(iter(self._sums.values())).device)])
        *totals, n_pairs = accelerator.reduce(stacked, reduction="sum").tolist()
        means = {name: total / n_pairs for name, total in zip(self._sums, totals, strict=True)}
        self._sums, self._n_pairs = {}, 0
        if self._shift is not None:
            means["lambda"] = self._shift
        return {name: value for name, value in means.items() if not math.isnan(value)}

    def export(self) -> dict[str, Any]:
        """Returns the sums of this process as JSON can hold them, to the last bit."""
        sums = {name: total.item() for name, total in self._sums.items()}
        return {"sums": sums, "n_pairs": self._n_pairs, "shift": self._shift}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Takes back what `export` returned."""
        self._sums = {name: torch.tensor(v, dtype=torch.float64, device=device) for name, v in state["sums"].items()}
        self._n_pairs, self._shift = state["n_pairs"], state["shift"]


def summarize_pairs(
    logps: ScoredPairs, prefixes: ScoredPairs | None, dataset: PairDataset, objective: Objective, state: TrainerState
) -> dict[str, float]:
    """Returns the means over an evaluation set, with its mean loss under the objective's current shift factor.

    Args:
        prefixes: of the pairs cut to their common length, for a loss that takes them.

    Pairs that were not trained on have no factor of their own; the dataset's `shifts` hold what stands in for it.
    """
    columns = collate_columns([dataset[index] for index in range(len(dataset))])
    pairs = PairLogps(
        policy_chosen_logps=torch.from_numpy(logps.chosen),
        policy_rejected_logps=torch.from_numpy(logps.rejected),
        policy_chosen_prefix_logps=None if prefixes is None else torch.from_numpy(prefixes.chosen),
        policy_rejected_prefix_logps=None if prefixes is None else torch.from_numpy(prefixes.rejected),
        **{name: columns[name] for name in PAIR_COLUMNS},
    )
    step = max(0, min(state.global_step, state.max_steps) - 1)
    shift: float | Tensor = objective.shift_at(step, max(1, state.max_steps))
    if objective.adaptive is not None:
        shift = columns["shift"]
    losses = objective.loss.compute(pairs, objective.options, shift)
    weight = columns["chosen_tokens"].sum() if objective.loss.reduction == "chosen_tokens" else len(losses)
    means = {name: float(values.mean()) for name, values in compute_pair_metrics(pairs, objective.beta).items()}
    return {"loss": float(losses.sum() / weight)} | {k: v for k, v in means.items() if not math.isnan(v)}
