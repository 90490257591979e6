"""Attention of rows whose completions share a prompt, on a GPU: every part by itself, without the mask.

A dense mask has a kernel compute whole rows and hide most of them. Here a prompt attends to itself, and a completion to
its prompt and itself, in torch's kernel for sequences of any lengths (flash attention, 16 bits). On an H100 a layer
takes a half to a quarter of the time (`benchmarks/device.py --only attention`).

What is to attend to what travels with the mask: a mask that was marked here is recognised where transformers' models
call their attention. Wherever something does not suit (another type, dropout, a mask that a model has changed), the
mask is used as it is. Before the kernel is used, it is compared with the mask on the device, forward and backward.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from dpotool.likelihood.batch import PADDING, PARTS, build_block_mask
from dpotool.models.precision import in_full_float32

logger = logging.getLogger(__name__)

Attention = Callable[..., tuple[Tensor, Tensor | None]]
MARK = "dpotool_parts"
"""Attribute of a mask: the `PartIndex` of its rows."""
MAX_HEAD = 256
TOLERANCE = 0.05
"""Largest difference from the mask relative to the largest value, of states and of gradients; 16 bits round by 0.01."""
CHANGES_SCORES = ("position_bias", "softcap", "s_aux", "cache")
"""Arguments of attention that the kernel knows nothing of."""


@dataclass(frozen=True, slots=True)
class PartIndex:
    """Which tokens of a batch attend to which: parts (a prompt or a completion) one after the other.

    A place is row * seq + position.
    """

    queries: Int[Tensor, " tokens"]
    """Place of every token of the parts."""
    keys: Int[Tensor, " keys"]
    """Places that a part's tokens attend to: those of its prompt, if it is a completion, then its own up to each."""
    query_uses: Int[Tensor, "places 1"]
    key_uses: Int[Tensor, "places 3"]
    """Where a place stands in `queries` and in `keys`; the length of those lists where it stands there less often."""
    query_ends: Int[Tensor, " parts+1"]
    key_ends: Int[Tensor, " parts+1"]
    """Where each part's queries and keys end, in those lists; the first is 0."""
    longest_queries: int
    longest_keys: int


def list_parts(block_ids: Int[Tensor, "rows seq"]) -> PartIndex:
    """Lists the parts of a batch of shared rows (`SharedBatch.block_ids`)."""
    blocks = block_ids.cpu().numpy().ravel()
    starts = np.flatnonzero(np.diff(blocks, prepend=blocks[0] - 1))
    places = [np.arange(*ends) for ends in zip(starts, [*starts[1:], len(blocks)], strict=True)]
    runs = {int(blocks[of_part[0]]): of_part for of_part in places if blocks[of_part[0]] >= 0}
    queries = list(runs.values())
    keys = [of_part if block % PARTS == 0 else _join(runs, block) for block, of_part in runs.items()]
    query_places, key_places = np.concatenate(queries), np.concatenate(keys)

    def put(values: np.ndarray, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.from_numpy(values).to(block_ids.device, dtype)

    return PartIndex(
        queries=put(query_places),
        keys=put(key_places),
        query_uses=put(find_uses(query_places, len(blocks), 1)),
        key_uses=put(find_uses(key_places, len(blocks), PARTS)),
        query_ends=put(np.cumsum([0, *map(len, queries)]), torch.int32),
        key_ends=put(np.cumsum([0, *map(len, keys)]), torch.int32),
        longest_queries=max(map(len, queries)),
        longest_keys=max(map(len, keys)),
    )


def find_uses(places: Int[np.ndarray, " n"], n_places: int, most: int) -> Int[np.ndarray, "n_places most"]:
    """Finds where each place stands in a list; where it stands there less often than others, the list's length."""
    uses = np.full((n_places, most), len(places))
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=n_places)
    firsts = np.cumsum(counts) - counts
    uses[places[order], np.arange(len(places)) - firsts[places[order]]] = order
    return uses


def _join(runs: dict[int, np.ndarray], block: int) -> np.ndarray:
    return np.concatenate([runs[block - block % PARTS], runs[block]])


def mark_mask(mask: Float[Tensor, "rows 1 seq seq"], block_ids: Int[Tensor, "rows seq"]) -> Tensor:
    """Returns the mask; where the kernel can be trusted with its type, it also tells the parts of its rows."""
    if is_trusted(mask.device, mask.dtype):
        _install()
        setattr(mask, MARK, list_parts(block_ids))
    return mask


@functools.cache
def _install() -> None:
    """Puts `attend` in front of transformers' attention by torch, for marked masks only."""
    plain = AttentionInterface()["sdpa"]
    AttentionInterface.register("sdpa", functools.partial(attend, plain))


def attend(
    plain: Attention,
    module: nn.Module,
    query: Float[Tensor, "rows heads seq width"],
    key: Float[Tensor, "rows key_heads seq width"],
    value: Float[Tensor, "rows key_heads seq width"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers' models call it: by parts if the mask is marked and all suits, else `plain`.

    Returns:
        States (rows, seq, heads, width), zero in padding, and no weights of attention.
    """
    parts = getattr(attention_mask, MARK, None)
    if parts is None or not _suits(parts, query, key, value, options):
        return plain(module, query, key, value, attention_mask, **options)
    return attend_by_parts(query, key, value, parts), None


def attend_by_parts(
    query: Float[Tensor, "rows heads seq width"],
    key: Float[Tensor, "rows key_heads seq width"],
    value: Float[Tensor, "rows key_heads seq width"],
    parts: PartIndex,
) -> Float[Tensor, "rows seq heads width"]:
    """Returns what every token of a part makes of the tokens it sees; zero in padding."""
    n_rows, n_heads, n_tokens, width = query.shape
    query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    has_padding = len(parts.queries) < n_rows * n_tokens
    take: Any = _Take.apply
    if has_padding:
        query = take(query, parts.queries, parts.query_uses)
    key, value = (take(states, parts.keys, parts.key_uses) for states in (key, value))
    states = run_kernel(query, key, value, parts)
    if has_padding:
        states = states.new_zeros(n_rows * n_tokens, n_heads, width).index_copy_(0, parts.queries, states)
    return states.view(n_rows, n_tokens, n_heads, width)


class _Take(torch.autograd.Function):
    """Takes rows by their places. Its gradient knows each row's uses, which torch would find by sorting every time."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, uses: Tensor) -> Tensor:
        ctx.save_for_backward(uses)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (uses,) = ctx.saved_tensors
        with_none = F.pad(gradient, (0, 0) * (gradient.ndim - 1) + (0, 1))  # a row of zeros, for places without a use
        found = with_none.index_select(0, uses.flatten()).unflatten(0, uses.shape)
        return found.sum(1) if uses.shape[1] > 1 else found.squeeze(1), None, None


def _suits(parts: PartIndex, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> bool:
    width = query.shape[-1]
    scaling = options.get("scaling")
    return (
        query.shape[2] == key.shape[2] == value.shape[2]
        and width == key.shape[-1] == value.shape[-1] <= MAX_HEAD
        and width % 8 == 0
        and query.dtype == key.dtype == value.dtype
        and query.device == parts.queries.device
        and is_trusted(query.device, query.dtype)
        and not options.get("dropout")
        and (scaling is None or abs(scaling * width**0.5 - 1) < 1e-6)
        and all(options.get(name) is None for name in CHANGES_SCORES)
    )


def run_kernel(
    queries: Float[Tensor, "tokens heads width"],
    keys: Float[Tensor, "keys key_heads width"],
    values: Float[Tensor, "keys key_heads width"],
    parts: PartIndex,
) -> Float[Tensor, "tokens heads width"]:
    """Attends part by part: the last token of a part sees all its keys, the one before it one key less, and so on."""
    kernel, takes_groups = _find_kernel()
    factor = queries.shape[1] // keys.shape[1]
    if factor > 1 and not takes_groups:
        keys, values = (states.repeat_interleave(factor, dim=1) for states in (keys, values))
    ends = parts.query_ends, parts.key_ends
    found: Tensor = kernel(queries, keys, values, *ends, parts.longest_queries, parts.longest_keys)
    return found


@functools.cache
def _find_kernel() -> tuple[Callable[..., Any], bool]:
    """Returns torch's kernel, told to be causal in the words of this release, and whether heads may share keys."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}  # 2.10; later
    takes_groups = "enable_gqa" in known
    if takes_groups:
        options["enable_gqa"] = True
    return functools.partial(varlen_attn, **options), takes_groups


@functools.cache
def is_trusted(device: torch.device, dtype: torch.dtype) -> bool:
    """Tells whether the kernel is there for this device and type and agrees with the mask; found out once."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        error = measure_error(device, dtype)
    except Exception as problem:  # the mask does what the kernel would have done, whatever is wrong with it
        logger.info("attention by parts is not used on %s: %s", device, str(problem).splitlines()[:1])
        return False
    is_right = error < TOLERANCE
    use = "is used" if is_right else "is not used"
    logger.info("attention by parts %s on %s, %s: it differs from the mask by %.1e", use, device, dtype, error)
    return is_right


def measure_error(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the largest relative difference between the kernel and the mask in float32, of states and of gradients.

    Of random states of two rows, with two pairs in the first one, one pair and padding in the second.
    """
    lengths = [(0, 9), (1, 5), (2, 7), (3, 4), (4, 3), (5, 6)], [(6, 11), (7, 8), (8, 9), (PADDING, 6)]
    rows = [[block for block, n_tokens in row for _ in range(n_tokens)] for row in lengths]
    block_ids = torch.tensor(rows, device=device)
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, heads, len(rows[0]), 64, generator=draw).to(device, dtype) for heads in (4, 2, 2)]
    is_real = (block_ids >= 0)[:, :, None, None]

    def differentiate(attention: Callable[..., Tensor], kind: torch.dtype) -> list[Tensor]:
        states = [one.to(kind, copy=True).requires_grad_() for one in drawn]
        found = attention(*states) * is_real
        return [one.detach().float() for one in (found, *torch.autograd.grad(found.square().sum(), states))]

    def by_mask(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (states.repeat_interleave(2, dim=1) for states in (key, value))
        mask = build_block_mask(block_ids, query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)

    with torch.enable_grad(), torch.autocast(device.type, enabled=False), in_full_float32():
        parts = list_parts(block_ids)
        got = differentiate(lambda query, key, value: attend_by_parts(query, key, value, parts), dtype)
        expected = differentiate(by_mask, torch.float32)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(got, expected, strict=True))
