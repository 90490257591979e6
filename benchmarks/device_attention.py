"""Ways of computing attention over rows of [prompt; chosen; rejected], to be timed side by side, and rows for them.

Every way takes the pairs of a batch, (query heads, key and value heads, width) and the device, and returns a function
that runs one layer's attention on random states, forward (and returns what it makes of them) or there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from device_models import draw_pairs
from torch import Tensor
from torch.nn import functional as F

from dpotool.data.pairs import TokenizedPair
from dpotool.likelihood.batch import PARTS, collate_pairs, collate_shared
from dpotool.likelihood.part_attention import attend_by_parts, list_parts

Heads = tuple[int, int, int]
Run = Callable[[], Tensor | None]


def list_row_groups(n_tokens: int) -> dict[str, list[TokenizedPair]]:
    """Returns pairs by name: those of each set that fill a batch, and a few with very long prompts."""
    groups = {}
    for data in ("TL;DR", "UltraFeedback"):
        pairs, total = [], 0
        for pair in draw_pairs(data, 64, 1000):
            total += len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)
            if total > n_tokens and pairs:
                break
            pairs.append(pair)
        groups[data] = pairs
    long = n_tokens // 4
    ids = tuple(range(3, 3 + long))
    groups[f"prompts of {3 * long // 4} tokens"] = [
        TokenizedPair(place, ids[: 3 * long // 4], ids[: long // 8], ids[: long // 8]) for place in range(4)
    ]
    return groups


def draw_states(
    n_rows: int, n_tokens: int, heads: Heads, device: torch.device, *, backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns query, key and value (rows, heads, tokens, width) in bfloat16, always the same ones."""
    query_heads, key_heads, width = heads
    torch.manual_seed(0)

    def draw(n_heads: int) -> Tensor:
        states = torch.randn(n_rows, n_heads, n_tokens, width, device=device, dtype=torch.bfloat16)
        return states.requires_grad_(backward)

    return draw(query_heads), draw(key_heads), draw(key_heads)


def _repeat(run: Callable[..., Tensor], states: Sequence[Tensor], *, backward: bool) -> Run:
    def once() -> Tensor | None:
        if not backward:
            with torch.no_grad():
                return run(*states)
        run(*states).sum().backward()
        for state in states:
            state.grad = None
        return None

    return once


def run_dense(pairs: Sequence[TokenizedPair], heads: Heads, device: torch.device, *, backward: bool) -> Run:
    """The dense additive mask, keys and values repeated for their queries: what transformers makes of a mask."""
    batch = collate_shared(pairs).to(device)
    mask = batch.build_mask(torch.bfloat16)
    factor = heads[0] // heads[1]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(factor, dim=1), v.repeat_interleave(factor, dim=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return _repeat(attend, draw_states(*batch.input_ids.shape, heads, device, backward=backward), backward=backward)


def run_rows_of_their_own(pairs: Sequence[TokenizedPair], heads: Heads, device: torch.device, *, backward: bool) -> Run:
    """Causal attention over a row for each completion, the prompt computed twice."""
    rows = collate_pairs(pairs).input_ids.shape

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return _repeat(attend, draw_states(*rows, heads, device, backward=backward), backward=backward)


def run_flex(pairs: Sequence[TokenizedPair], heads: Heads, device: torch.device, *, backward: bool) -> Run:
    """FlexAttention, which leaves out the blocks of the mask that are empty."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    blocks = collate_shared(pairs).block_ids.to(device)
    pair, part = blocks // PARTS, blocks % PARTS

    def is_seen(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_own = (part[row, key] == 0) | (part[row, key] == part[row, query])
        return (pair[row, key] == pair[row, query]) & is_own & (key <= query)

    n_rows, n_tokens = blocks.shape
    mask = create_block_mask(is_seen, n_rows, None, n_tokens, n_tokens, device=str(device))
    compiled = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, block_mask=mask, enable_gqa=True)

    return _repeat(attend, draw_states(n_rows, n_tokens, heads, device, backward=backward), backward=backward)


def run_by_parts(pairs: Sequence[TokenizedPair], heads: Heads, device: torch.device, *, backward: bool) -> Run:
    """dpotool's way: torch's kernel for sequences of any lengths, completions with a copy of their prompt's keys."""
    batch = collate_shared(pairs).to(device)
    parts = list_parts(batch.block_ids)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_by_parts(q, k, v, parts).transpose(1, 2)

    return _repeat(attend, draw_states(*batch.input_ids.shape, heads, device, backward=backward), backward=backward)


ATTENTIONS = {
    "dense mask": run_dense,
    "FlexAttention": run_flex,
    "by parts": run_by_parts,
    "rows of their own": run_rows_of_their_own,
}
