"""Lays tokenized pairs out as a padded batch: two rows a pair, chosen then rejected, padding on the right.

dpotool pads its own rows, so a tokenizer's padding side and padding token never change a number. Padding stands right
of every real token, where a causal model never sees it; so no attention mask is passed, which would buy nothing and,
with sliding windows, leaves padded positions with nothing to attend to (NaN, which then spreads: Gemma-2). A row is
padded with its own last token: any other may have an embedding that is zero (Gemma-3n's padding) or not a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Int
from torch import Tensor

from dpotool.data.pairs import TokenizedPair


@dataclass(frozen=True, slots=True)
class Targets:
    """The completion tokens of a batch, flat, completion after completion, and the states that predict them."""

    rows: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    """Row and position of the state that predicts each token."""
    completions: Int[Tensor, " tokens"]
    """Which completion each token belongs to (chosen_0, rejected_0, chosen_1, ...)."""
    token_ids: Int[Tensor, " tokens"]


@dataclass(frozen=True, slots=True)
class Ends:
    """Position of each completion's last token in its row."""

    rows: Int[Tensor, " completions"]
    positions: Int[Tensor, " completions"]


@dataclass(frozen=True, slots=True)
class CompletionBatch:
    """Rows of prompt + completion."""

    input_ids: Int[Tensor, "rows seq"]
    position_ids: Int[Tensor, "rows seq"]
    """0, 1, 2, ... from each row's first token; explicit, because not every architecture derives them alike."""
    completion_mask: Int[Tensor, "rows seq"]
    """1 = a completion token, whose log-probability counts; never the row's first token."""

    @property
    def n_completions(self) -> int:
        return len(self.input_ids)

    def find_targets(self) -> Targets:
        rows, positions = self.completion_mask.nonzero(as_tuple=True)
        return Targets(rows, positions - 1, rows, self.input_ids[rows, positions])

    def find_ends(self) -> Ends:
        rows = torch.arange(len(self.input_ids), device=self.input_ids.device)
        places = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return Ends(rows, (self.completion_mask * places).argmax(dim=1))

    def select(self, rows: Int[Tensor, " some"], length: int) -> CompletionBatch:
        """Returns some rows, cut behind their last real token."""
        return CompletionBatch(*(getattr(self, field.name)[rows, :length] for field in fields(self)))

    def to(self, device: torch.device) -> CompletionBatch:
        return CompletionBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def to_dict(self) -> dict[str, Tensor]:
        """Returns the tensors by name, as Trainer's data loading wants them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def collate_pairs(pairs: Sequence[TokenizedPair], *, with_rejected: bool = True) -> CompletionBatch:
    """Builds rows (chosen_0, rejected_0, chosen_1, rejected_1, ...), or only the chosen ones."""
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for pair in pairs:
        rows.append((pair.prompt_ids, pair.chosen_ids))
        if with_rejected:
            rows.append((pair.prompt_ids, pair.rejected_ids))
    return collate_rows(rows)


def collate_rows(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> CompletionBatch:
    """Builds one row from each (prompt_ids, completion_ids); a prompt without tokens is a ValueError."""
    if any(len(prompt) == 0 for prompt, _ in rows):
        raise ValueError("a row has an empty prompt: nothing predicts its completion's first token")
    length = max(len(prompt) + len(completion) for prompt, completion in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    completion_mask = torch.zeros_like(input_ids)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        input_ids[row, end:] = input_ids[row, end - 1]
        completion_mask[row, len(prompt) : end] = 1
    position_ids = torch.arange(length).repeat(len(rows), 1)
    return CompletionBatch(input_ids, position_ids, completion_mask)
