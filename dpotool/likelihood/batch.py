"""Lays tokenized pairs out as rows of a batch: two rows a pair, or chosen and rejected behind one prompt.

`CompletionBatch` has two rows a pair, chosen then rejected, padding on the right. dpotool pads its rows by itself, so a
tokenizer's padding side and padding token never change a number. Padding stands right of every real token, where a
causal model never sees it; so no attention mask is passed, which would buy nothing and, with sliding windows, leaves
padded positions with nothing to attend to (NaN, which then spreads: Gemma-2). A row is padded with its last token: any
other may have an embedding that is zero (Gemma-3n's padding) or not a number.

`SharedBatch` computes a prompt once: [prompt; chosen; rejected] in a row, or several pairs. A block mask lets a
completion's tokens see the prompt and their own completion only, and positions start again at each completion, so
every token sees what it would see in a row of its own. Rows are as long as the longest pair; shorter pairs share a row
where they fit. The first token of *both* completions is predicted by the prompt's last state, so the states to read
are listed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
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
class _Tensors:
    """What both kinds of batch are: a record of tensors."""

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def to_dict(self) -> dict[str, Tensor]:
        """Returns the tensors by name, as Trainer's data loading wants them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class CompletionBatch(_Tensors):
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


PARTS = 3
"""Blocks of a pair: 0 its prompt, 1 its chosen and 2 its rejected completion."""
PADDING = -PARTS
"""Block of padding: a prompt that belongs to no pair, so that a padded position has itself to attend to (no NaN)."""
MASK_ALIGNMENT = 8
"""Elements to which a mask's rows are aligned in memory; GPU kernels would otherwise copy it in every layer."""


@dataclass(frozen=True, slots=True)
class SharedBatch(_Tensors):
    """Rows of pairs whose completions share their prompt."""

    input_ids: Int[Tensor, "rows seq"]
    position_ids: Int[Tensor, "rows seq"]
    """As if each completion stood alone behind its prompt."""
    block_ids: Int[Tensor, "rows seq"]
    """3 * pair + part (0 prompt, 1 chosen, 2 rejected); -3 for padding."""
    target_rows: Int[Tensor, " tokens"]
    """Of the state that predicts each completion token; tokens in the order chosen_0, rejected_0, chosen_1, ..."""
    target_positions: Int[Tensor, " tokens"]
    target_completions: Int[Tensor, " tokens"]
    """Which completion each token belongs to, in that order."""
    target_ids: Int[Tensor, " tokens"]
    completion_tokens: Int[Tensor, " completions"]
    """How many tokens each completion has."""

    @property
    def n_completions(self) -> int:
        return len(self.completion_tokens)

    def find_targets(self) -> Targets:
        return Targets(self.target_rows, self.target_positions, self.target_completions, self.target_ids)

    def find_ends(self) -> Ends:
        rows, positions = ((self.block_ids >= 0) & (self.block_ids % PARTS > 0)).nonzero(as_tuple=True)
        _, completions = self.block_ids[rows, positions].unique(return_inverse=True)  # in the order of the targets
        places = rows * self.block_ids.shape[1] + positions
        last = places.new_zeros(self.n_completions).scatter_reduce(0, completions, places, "amax")
        return Ends(last // self.block_ids.shape[1], last % self.block_ids.shape[1])

    def build_mask(self, dtype: torch.dtype) -> Float[Tensor, "rows 1 seq seq"]:
        """Builds what is added to attention scores (`build_block_mask`)."""
        return build_block_mask(self.block_ids, dtype)


def build_block_mask(block_ids: Int[Tensor, "rows seq"], dtype: torch.dtype) -> Float[Tensor, "rows 1 seq seq"]:
    """Builds what is added to attention scores: 0 where a token (second last axis) sees another, else the least."""
    pair, part = block_ids // PARTS, block_ids % PARTS
    is_seen = part[:, None, :] == part[:, :, None]
    is_seen |= (part == 0)[:, None, :]
    is_seen &= pair[:, None, :] == pair[:, :, None]
    is_seen.tril_()
    n_rows, n_tokens = block_ids.shape
    width = -(-n_tokens // MASK_ALIGNMENT) * MASK_ALIGNMENT
    mask = torch.zeros(n_rows, 1, n_tokens, width, dtype=dtype, device=block_ids.device)[..., :n_tokens]
    return mask.masked_fill_(~is_seen[:, None], torch.finfo(dtype).min)


def count_shared_tokens(pair: TokenizedPair, *, with_rejected: bool = True) -> int:
    """Returns how many tokens a pair takes when its prompt is there once."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + (len(pair.rejected_ids) if with_rejected else 0)


def pack_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Puts pieces into rows as long as the longest piece: each, from the longest on, into the first row with room.

    Returns:
        Indices into `lengths`, each exactly once.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    longest = max(lengths)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(longest)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def collate_shared(pairs: Sequence[TokenizedPair], *, with_rejected: bool = True) -> SharedBatch:
    """Builds the rows of some pairs, or of their prompts and chosen completions; an empty prompt is a ValueError."""
    if any(not pair.prompt_ids for pair in pairs):
        raise ValueError("a pair has an empty prompt: nothing predicts its completions' first token")
    n_parts = PARTS if with_rejected else PARTS - 1
    parts = [ids for pair in pairs for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)[:n_parts]]
    lengths = np.array([len(ids) for ids in parts]).reshape(-1, n_parts)
    rows, first_columns, n_rows = _place_pairs(lengths.sum(axis=1))
    starts = first_columns[:, None] + lengths.cumsum(axis=1) - lengths  # column of each part's first token
    prompt_ends = starts[:, :1] + lengths[:, :1]

    def of_each_token(of_parts: np.ndarray) -> np.ndarray:
        """Repeats a value per pair, part, or both, for the tokens of each part; pair after pair, part after part."""
        return np.repeat(np.broadcast_to(of_parts, lengths.shape).ravel(), lengths.ravel())

    place = np.arange(n_parts)
    pair = np.arange(len(pairs))[:, None]
    in_part = np.arange(lengths.sum()) - of_each_token((lengths.cumsum() - lengths.ravel()).reshape(lengths.shape))
    row, column = of_each_token(rows[:, None]), of_each_token(starts) + in_part
    token_ids = np.fromiter(chain.from_iterable(parts), dtype=np.int64, count=len(row))
    block_ids = np.full((n_rows, lengths.sum(axis=1).max()), PADDING)
    block_ids[row, column] = of_each_token(PARTS * pair + place)
    position_ids = np.zeros_like(block_ids)
    position_ids[row, column] = in_part + of_each_token(lengths[:, :1] * (place > 0))
    input_ids = np.zeros_like(block_ids)
    input_ids[row, column] = token_ids
    last = input_ids[np.arange(n_rows), (block_ids != PADDING).sum(axis=1) - 1]
    input_ids = np.where(block_ids == PADDING, last[:, None], input_ids)

    is_target = of_each_token(place > 0)
    predicted_at = np.where(in_part == 0, of_each_token(prompt_ends - 1), column - 1)
    completion = of_each_token((n_parts - 1) * pair + place - 1)
    targets = [values[is_target] for values in (row, predicted_at, completion, token_ids)]
    tensors = (input_ids, position_ids, block_ids, *targets, lengths[:, 1:].ravel())
    return SharedBatch(*map(torch.from_numpy, tensors))


def _place_pairs(
    lengths: Int[np.ndarray, " pairs"],
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], int]:
    """Returns the row of each pair, the column of its first token, and the number of rows (`pack_rows`)."""
    packed = pack_rows(lengths.tolist())
    rows, columns = np.empty_like(lengths), np.empty_like(lengths)
    for row, members in enumerate(packed):
        rows[members] = row
        columns[members] = lengths[members].cumsum() - lengths[members]
    return rows, columns, len(packed)
