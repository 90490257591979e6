"""Batches by token budget: a given number of tokens, or what free memory allows; and what to do if that is too many."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil  # comes with accelerate
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dpotool.data.pairs import TokenizedPair
from dpotool.errors import DpotoolError
from dpotool.likelihood.completions import can_split_head, count_chunk_elements, get_causal_lm
from dpotool.settings.shared import AUTO

logger = logging.getLogger(__name__)

R = TypeVar("R")
Plan = Callable[[Sequence[int], int], list[list[int]]]
"""Makes batches of the pairs with these places, of at most so many tokens each."""

MOST_TOKENS = {"cpu": 2048}
"""Beyond this a larger batch is slower: its activations leave the caches (benchmarks/batch_tokens.py)."""
MOST_TOKENS_ELSEWHERE = 16_384
LEAST_TOKENS_ELSEWHERE = 4096
BUSY_STATES = 2**24
"""Numbers in a layer's states that keep an H100 busy: 4,096 tokens of 8B, but 16,384 of 0.5B, whose products are
small. More only takes memory (`benchmarks/device.py --only "batch sizes"`)."""
SHARE_OF_FREE_MEMORY = 0.5
"""Of what is free at the start; the estimate below is rough, and others use the machine too."""


_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models of which it was said that memory is short."""
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def resolve_batch_tokens(
    batch_tokens: int | str,
    model: nn.Module,
    pairs: Sequence[TokenizedPair] = (),
    *,
    with_gradients: bool = False,
) -> int:
    """Returns the budget of padded tokens a batch: a given number, or for 'auto' one by free memory and model size.

    Auto is half of the free memory of the model's device, less one chunk of logits, divided by what a token takes
    (`estimate_bytes_per_token`); at most 2,048 on a CPU, and elsewhere what `find_most_tokens` says. Of several
    processes, which must all call this, the one with the least memory decides: they share out the batches of one plan.

    Args:
        pairs: that will be run; where auto holds not even the longest of them, a warning says so, once for a model.
        with_gradients: activations of all layers are kept for a backward pass, and four buffers of the weights' size.
    """
    if batch_tokens != AUTO:
        return int(batch_tokens)
    device = next(model.parameters()).device
    most = MOST_TOKENS.get(device.type) or (MOST_TOKENS_ELSEWHERE if with_gradients else find_most_tokens(model))
    free = measure_free_memory(device)
    if with_gradients:
        free -= 4 * sum(held.numel() * held.element_size() for held in map(_get_held, model.parameters()))
    usable = SHARE_OF_FREE_MEMORY * free - estimate_chunk_bytes(model)
    own = max(1, min(most, int(usable / estimate_bytes_per_token(model, with_gradients=with_gradients))))
    budget: int = min(gather_object([own]))
    longest = max((2 * pair.longest for pair in pairs), default=0)
    if budget < longest and model not in _told:
        _told.add(model)
        logger.warning(
            "little memory is free: --batch-tokens auto comes to %d, and the longest pair has %d tokens",
            budget,
            longest,
        )
    return budget


def find_most_tokens(model: nn.Module) -> int:
    """Returns how many tokens keep an accelerator busy in scoring: 4,096 to 16,384, by the width of the states."""
    return max(LEAST_TOKENS_ELSEWHERE, min(MOST_TOKENS_ELSEWHERE, BUSY_STATES // find_hidden_size(model)))


def _get_held(parameter: Tensor) -> Tensor:
    """Returns what this process holds of a parameter, which may be spread over several."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def estimate_bytes_per_token(model: nn.Module, *, with_gradients: bool = False) -> int:
    """Returns about how much memory (bytes) a padded token takes at the peak of a forward pass.

    In the widest moment of a layer: eight vectors of the hidden size, four of the feed-forward size (of a mixture, of
    the experts that a token goes to), and two of the hidden size in float32 where norms are taken in it. Full logits
    are added for a model whose output layer cannot run apart. With gradients every layer keeps its own.
    """
    config = get_causal_lm(model).config.get_text_config()
    size = next(model.parameters()).element_size()
    hidden = find_hidden_size(model)
    per_layer = size * (8 * hidden + 4 * _feed_forward_size(config, hidden)) + 8 * hidden
    n_layers = int(getattr(config, "num_hidden_layers", None) or 1) if with_gradients else 1
    logits = 0 if can_split_head(get_causal_lm(model)) else int(config.vocab_size) * (size + 8)
    return n_layers * per_layer + logits


def find_hidden_size(model: nn.Module) -> int:
    """Returns the width of a layer's states: what the configuration says, or else the embeddings' width.

    Configurations that come with a checkpoint may have another name for it (`d_model`, `n_embd`).
    """
    causal_lm = get_causal_lm(model)
    said = getattr(causal_lm.config.get_text_config(), "hidden_size", None)
    embeddings: Any = causal_lm.get_input_embeddings()
    return int(said or embeddings.weight.shape[1])


def _feed_forward_size(config: Any, hidden: int) -> int:
    own = next((getattr(config, name) for name in ("intermediate_size", "ffn_dim", "n_inner") if _has(config, name)), 0)
    experts = int(getattr(config, "moe_intermediate_size", None) or own or 0)
    n_used = int(getattr(config, "num_experts_per_tok", None) or 1)
    return max(int(own or 0), experts * n_used) or 4 * hidden


def _has(config: Any, name: str) -> bool:
    return isinstance(getattr(config, name, None), int)


def estimate_chunk_bytes(model: nn.Module) -> int:
    """Returns the memory (bytes) of the logits that are alive at a time: in the model's type and twice in float32."""
    one = next(model.parameters())
    return count_chunk_elements(one.device) * (one.element_size() + 8)


def measure_free_memory(device: torch.device) -> int:
    """Returns the bytes that can still be allocated: of the accelerator, or of the machine or this process's group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = int(psutil.virtual_memory().available)
    limit, used = _read_number("memory.max"), _read_number("memory.current")
    if limit is None or used is None:
        return free
    # what was read from files lately is kept as long as nobody needs the room, and counted as used
    return max(0, min(free, limit - used + _read_cached()))


def _read_number(name: str) -> int | None:
    """Reads a number of the control group; None where there is none, or no limit ('max')."""
    try:
        return int((_CONTROL_GROUP / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _read_cached() -> int:
    """Returns the bytes of file cache that the control group would release first; 0 if that is not known."""
    try:
        lines = (_CONTROL_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def run_within_memory(
    pairs: Sequence[TokenizedPair],
    batches: Sequence[Sequence[int]],
    run: Callable[[Sequence[int]], R],
    *,
    plan: Plan | None = None,
) -> Iterator[tuple[Sequence[int], R]]:
    """Runs batches (places in `pairs`) one after the other; one that runs out of memory is split and tried again.

    What was finished stays finished. Without `plan` only the batch that failed is halved; with it all that remains is
    planned anew with half of that batch's tokens.

    Yields:
        Each batch as it was run, and what `run` returned for it.

    Raises:
        DpotoolError: there is no memory for a single pair; names it and its lengths.
    """
    waiting = deque(batches)
    said: set[int] = set()
    while waiting:
        batch = waiting.popleft()
        result = _try(run, batch)
        if not isinstance(result, _OutOfMemory):
            yield batch, result
            continue
        if len(batch) == 1:
            raise _explain(pairs[batch[0]], result)
        halves = _split(pairs, batch, waiting, plan)
        if len(batch) not in said:
            said.add(len(batch))
            logger.warning("out of memory with a batch of %d pairs: going on with half as many", len(batch))
        waiting = halves


class _OutOfMemory:
    """Size of a batch that does not fit, for the error message."""

    def __init__(self, device: str) -> None:
        self.device = device


def _try(run: Callable[[Sequence[int]], R], batch: Sequence[int]) -> R | _OutOfMemory:
    try:
        return run(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device = "the accelerator" if isinstance(error, torch.OutOfMemoryError) else "memory"
    # Only here is the failed pass's own memory free: the exception held on to its frames.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _OutOfMemory(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error means out of memory: CUDA's error class, or a RuntimeError of another allocator."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    signs = ("you tried to allocate", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _split(
    pairs: Sequence[TokenizedPair], batch: Sequence[int], waiting: deque[Sequence[int]], plan: Plan | None
) -> deque[Sequence[int]]:
    middle = (len(batch) + 1) // 2
    if plan is None:
        return deque([batch[:middle], batch[middle:], *waiting])
    remaining = [place for other in (batch, *waiting) for place in other]
    tokens = middle * 2 * max(pairs[place].longest for place in batch)
    planned = plan(remaining, tokens)
    while any(set(batch) <= set(other) for other in planned):  # a plan counts a prompt that is shared only once
        tokens = max(1, tokens // 2)
        planned = plan(remaining, tokens)
    return deque(planned)


def _explain(pair: TokenizedPair, failure: _OutOfMemory) -> DpotoolError:
    lengths = f"{len(pair.prompt_ids)} prompt, {len(pair.chosen_ids)} chosen and {len(pair.rejected_ids)} rejected"
    return DpotoolError(
        f"does not fit into {failure.device} even by itself",
        where=f"pair {pair.pair_id}",
        got=f"{lengths} tokens",
        remedy="Lower --max-length, or use --dtype bfloat16 or another --device",
    )


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Groups rows into batches of at most `batch_tokens` tokens after padding.

    Args:
        lengths: tokens in each row.
        batch_tokens: limit on rows times longest row of a batch. A row that exceeds it alone is a batch of its own.

    Returns:
        Indices into `lengths`, each exactly once. The longest rows come first, so that a batch which does not fit into
        memory fails at once and the time left is not underestimated; equal lengths keep their order.

    Raises:
        DpotoolError: `batch_tokens` below 1.
    """
    if batch_tokens < 1:
        raise DpotoolError("--batch-tokens is out of range", expected="at least 1", got=str(batch_tokens))
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
