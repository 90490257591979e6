"""Several processes: batches are shared out and brought together, and log-probabilities come from inside the forward.

DDP and FSDP synchronise gradients only for what happens inside the wrapped module's own forward, and where weights are
sharded (`fully_shard`, ZeRO-3) they are whole only there. So `model(completion_batch=...)` is taught to answer with
log-probabilities; any other call goes where it went before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dpotool.likelihood.batch import CompletionBatch, SharedBatch
from dpotool.likelihood.completions import (
    can_split_head,
    compute_completion_logps,
    compute_token_logps,
    get_causal_lm,
    is_sharded,
)
from dpotool.likelihood.layout import find_row_limit

T = TypeVar("T")


def share_out(batches: Sequence[T]) -> Sequence[T]:
    """Returns this process's batches: all of them, if it is alone."""
    state = PartialState()
    return batches[state.process_index :: state.num_processes]


def share_in_step(batches: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Yields this process's batches where every pass over one is everybody's: all processes run equally many.

    One that has fewer batches runs the last one once more, and drops what comes of it: the second value is False.
    """
    share = share_out(batches)
    yield from ((batch, True) for batch in share)
    if len(share) < -(-len(batches) // PartialState().num_processes):
        yield batches[-1], False


def gather_shares(finished: Mapping[int, T], n_places: int | None) -> dict[int, T]:
    """Returns what all processes finished, by place and in that order.

    Args:
        n_places: how many places were shared out; None: after an interruption, some may be missing.

    Raises:
        RuntimeError: a place was left out, or computed twice: the processes did not plan the same batches.
    """
    results = list(finished.items())
    if PartialState().num_processes > 1:
        results = gather_object(results)
    results.sort(key=lambda result: result[0])
    if n_places is not None and [place for place, _ in results] != list(range(n_places)):
        raise RuntimeError(f"expected each of {n_places} pairs computed exactly once, got {len(results)} results")
    return dict(results)


ComputeLogps = Callable[[nn.Module, Any], Tensor]
"""A model and a batch of rows -> log pi of every completion."""
_ROUTED = "_dpotool_answers_batches"


def route_forward(model: nn.Module, compute_logps: ComputeLogps = compute_completion_logps) -> None:
    """Lets `model(completion_batch=...)` answer with the log-probability of every completion of a batch of rows.

    With `by_token=True` it answers with that of every completion token; `model(inside=compute)` answers with what
    `compute()` returns. Whatever has to be tried out on a
    model is tried here, before a wrapper shards its weights.
    """
    original = model.forward
    can_split_head(get_causal_lm(model))
    find_row_limit(model)

    def forward(
        *args: Any,
        completion_batch: CompletionBatch | SharedBatch | None = None,
        by_token: bool = False,
        inside: Callable[[], Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if inside is not None:
            return inside()
        if completion_batch is None:
            return original(*args, **kwargs)
        if by_token:
            return compute_token_logps(model, completion_batch).logps
        return compute_logps(model, completion_batch)

    model.forward = forward
    setattr(model, _ROUTED, True)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the decoder's layers: the outermost list of modules in it that is as long as its config says.

    An empty list if there is none.
    """
    decoder = get_causal_lm(model).get_decoder()
    n_layers = getattr(decoder.config, "num_hidden_layers", None)
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return list(module)
    return []


def wants_shards() -> bool:
    """Tells whether the launcher was told to spread weights over its processes (accelerate's FSDP2)."""
    is_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true" and os.environ.get("FSDP_VERSION") == "2"
    return is_fsdp and PartialState().num_processes > 1


def shard_weights(model: nn.Module, device: torch.device) -> None:
    """Spreads a model's weights over all processes (`fully_shard`), layer by layer; each device has one share of them.

    Layers are whole only while they run. Gradients are averaged over processes in float32.
    """
    route_forward(model)
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for part in [*find_layers(model), model]:
        fully_shard(part, mesh=mesh, mp_policy=policy)


def is_routed(model: nn.Module) -> bool:
    """Tells whether a model answers batches of rows."""
    return bool(getattr(model, _ROUTED, False))


def score_tokens(model: nn.Module, batch: CompletionBatch | SharedBatch) -> Float[Tensor, " tokens"]:
    """Computes log pi (nats) of every completion token; of sharded weights inside the model's forward.

    Raises:
        RuntimeError: the weights were sharded before anybody called `route_forward`.
    """
    return run_inside(model, lambda: compute_token_logps(model, batch).logps)


def run_inside(model: nn.Module, compute: Callable[[], T]) -> T:
    """Returns what `compute` does; with sharded weights it runs inside the model's forward pass.

    There they are whole. What goes back later must be among what it returns: a tensor, or a tuple of tensors.

    Raises:
        RuntimeError: the weights were sharded before anybody called `route_forward`.
    """
    if not is_sharded(model):
        return compute()
    if not is_routed(model):
        raise RuntimeError("the weights are sharded, and the model was not prepared for it (`route_forward`)")
    result: T = model(inside=compute)
    return result
