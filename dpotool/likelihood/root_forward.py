"""Log-probabilities from inside a model's own forward pass, where wrappers that shard or synchronise weights want them.

DDP and FSDP synchronise gradients only for what happens inside the wrapped module's own forward, and where weights are
sharded (`fully_shard`, ZeRO-3) they are whole only there. So `model(completion_batch=...)` is taught to answer with
log-probabilities; any other call goes where it went before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dpotool.likelihood.batch import CompletionBatch
from dpotool.likelihood.completions import (
    can_split_head,
    compute_completion_logps,
    compute_token_logps,
    get_causal_lm,
    is_sharded,
)
from dpotool.likelihood.prompt_sharing import find_row_limit
from dpotool.likelihood.shared_rows import SharedBatch

ComputeLogps = Callable[[nn.Module, Any], Tensor]
"""A model and a batch of rows -> log pi of every completion."""
_ROUTED = "_dpotool_answers_batches"


def route_forward(model: nn.Module, compute_logps: ComputeLogps = compute_completion_logps) -> None:
    """Lets `model(completion_batch=...)` answer with the log-probability of every completion of a batch of rows.

    With `by_token=True` it answers with that of every completion token. What is found out by trying a model is found
    out here, before a wrapper shards its weights.
    """
    original = model.forward
    can_split_head(get_causal_lm(model))
    find_row_limit(model)

    def forward(
        *args: Any,
        completion_batch: CompletionBatch | SharedBatch | None = None,
        by_token: bool = False,
        **kwargs: Any,
    ) -> Any:
        if completion_batch is None:
            return original(*args, **kwargs)
        if by_token:
            return compute_token_logps(model, completion_batch).logps
        return compute_logps(model, completion_batch)

    model.forward = forward
    setattr(model, _ROUTED, True)


def is_routed(model: nn.Module) -> bool:
    """Tells whether a model answers batches of rows."""
    return bool(getattr(model, _ROUTED, False))


def score_tokens(model: nn.Module, batch: CompletionBatch | SharedBatch) -> Float[Tensor, " tokens"]:
    """Computes log pi (nats) of every completion token; of sharded weights inside the model's forward.

    Raises:
        RuntimeError: the weights were sharded before anybody called `route_forward`.
    """
    if not is_sharded(model):
        return compute_token_logps(model, batch).logps
    if not is_routed(model):
        raise RuntimeError("the weights are sharded, and the model was not prepared for it (`route_forward`)")
    logps: Tensor = model(completion_batch=batch, by_token=True)
    return logps
