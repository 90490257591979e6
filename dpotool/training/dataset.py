"""Pairs with their reference values as a dataset for `transformers.Trainer`, and the collator that batches them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import CompletionBatch, SharedBatch
from dpotool.likelihood.layout import RowLayout

PAIR_COLUMNS = (
    "reference_chosen_logps",
    "reference_rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
    "score_chosen",
    "score_rejected",
    "reference_chosen_prefix_logps",
    "reference_rejected_prefix_logps",
)
"""What a micro-batch holds per pair, (batch,) each, under the names the losses use."""


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """A pair with log pi_ref of its completions (nats; NaN where the loss needs no reference)."""

    pair: TokenizedPair
    reference_chosen_logps: float
    reference_rejected_logps: float
    shift: float
    """The pair's own shift factor; 1 where the objective has one for all."""
    reference_chosen_prefix_logps: float
    reference_rejected_prefix_logps: float
    """As above, of the first tokens only, as many as the shorter completion has."""


class PairDataset(Dataset[TrainingPair]):
    """Pairs in source order; reference values and shift factors are aligned with them, or None."""

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        chosen_reference: np.ndarray | None = None,
        rejected_reference: np.ndarray | None = None,
        shifts: np.ndarray | None = None,
    ) -> None:
        self.pairs = list(pairs)
        unknown = np.full(len(self.pairs), math.nan)
        self.chosen_reference = unknown if chosen_reference is None else chosen_reference
        self.rejected_reference = unknown if rejected_reference is None else rejected_reference
        self.shifts = np.ones(len(self.pairs)) if shifts is None else shifts
        self.chosen_prefix_reference = self.rejected_prefix_reference = unknown

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TrainingPair:
        return TrainingPair(
            self.pairs[index],
            float(self.chosen_reference[index]),
            float(self.rejected_reference[index]),
            float(self.shifts[index]),
            float(self.chosen_prefix_reference[index]),
            float(self.rejected_prefix_reference[index]),
        )


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Makes a micro-batch: the tensors of its rows, and a value per pair of everything a loss may need."""

    layout: RowLayout
    with_rejected: bool = True
    """False for SFT, which never looks at the rejected completion."""

    def __call__(self, items: Sequence[TrainingPair]) -> dict[str, Tensor]:
        pairs = [item.pair for item in items]
        return self.layout.collate_step(pairs, with_rejected=self.with_rejected).to_dict() | collate_columns(items)


def collate_columns(items: Sequence[TrainingPair]) -> dict[str, Tensor]:
    """Returns what a loss may need of each pair beside its log-probabilities, (batch,) each."""
    pairs = [item.pair for item in items]
    return {
        "reference_chosen_logps": _column([item.reference_chosen_logps for item in items]),
        "reference_rejected_logps": _column([item.reference_rejected_logps for item in items]),
        "chosen_tokens": torch.tensor([len(pair.chosen_ids) for pair in pairs]),
        "rejected_tokens": torch.tensor([len(pair.rejected_ids) for pair in pairs]),
        "score_chosen": _column([pair.score_chosen for pair in pairs]),
        "score_rejected": _column([pair.score_rejected for pair in pairs]),
        "shift": _column([item.shift for item in items]),
        "reference_chosen_prefix_logps": _column([item.reference_chosen_prefix_logps for item in items]),
        "reference_rejected_prefix_logps": _column([item.reference_rejected_prefix_logps for item in items]),
    }


def read_batch(inputs: dict[str, Tensor]) -> CompletionBatch | SharedBatch:
    """Returns the rows of a micro-batch."""
    kind = SharedBatch if "block_ids" in inputs else CompletionBatch
    return kind(**{field.name: inputs[field.name] for field in fields(kind)})


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
